cimport cython
from streaminfer.batching.queue._ticket_cy cimport Execution as CExecution, Ticket as CTicket

cdef class BatchObservers:
    cdef object __weakref__
    cdef tuple _observers
    cdef dict _works
    cdef object _failures

    cpdef add(self, object observer)

    @cython.locals(requests=list, ticket=CTicket)
    cpdef begin(self, CExecution execution, long long now_ns)

    @cython.locals(begun=object, work=object)
    cpdef end(self, CExecution execution, long long now_ns, object assembler, object expected_ns, int bucket)

    @cython.locals(begun=list)
    cpdef list notify_begin(self, list requests, long long now_ns)

    cpdef object notify_end(self, list begun, object work, long long now_ns)

    @cython.locals(size=Py_ssize_t, uses=cython.longlong)
    cdef object _work_of(self, CExecution execution, object assembler, object expected_ns, int bucket)
