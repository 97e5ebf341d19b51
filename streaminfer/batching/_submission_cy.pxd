cimport cython
from streaminfer.batching.queue._queue_cy cimport RequestQueue
from streaminfer.batching.queue._ticket_cy cimport Ticket

cdef long long _NEVER
cdef frozenset _NUMBERS

cdef class DispatchState:
    cdef public Py_ssize_t free
    cdef public bint is_scheduled
    cdef public bint pipelines
    cdef public long long timer_ns

@cython.final
cdef class Submission:
    cdef RequestQueue _queue
    cdef DispatchState _dispatcher
    cdef bint _stack
    cdef bint _in_order
    cdef bint _plain
    cdef object _assembler
    cdef object _number_dtype
    cdef long long _slo_ns
    cdef object _service
    cdef public object clock
    cdef public object loop
    cdef public object new_future
    cdef public bint stopping
    cdef public Py_ssize_t submitted

    @cython.locals(
        present_ns=cython.longlong, due_ns=cython.longlong, bucket=int, cost=double, queue=RequestQueue,
        ticket=Ticket, dispatcher=DispatchState)
    cpdef Ticket submit(self, object request, object inputs, object deadline_ns, int priority, object loop=*, long long now_ns=*, object future=*)

    @cython.locals(dispatcher=DispatchState)
    cdef _schedule(self, object loop)
