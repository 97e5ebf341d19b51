cimport cython
from streaminfer.batching.queue._ticket_cy cimport Execution as CRun

cdef Py_ssize_t _STEPS

@cython.final
cdef class BatchMeans:
    cdef const long long[::1] _expected, _steps
    cdef long long[::1] _counts, _totals_ns
    cdef long long _left_ns, _work_ns, _single_ns

    @cython.locals(step=Py_ssize_t, work_ns=cython.longlong)
    cpdef bint absorb(self, Py_ssize_t size, long long duration_ns, bint opens=*) except -1

    cpdef bint absorb_execution(self, CRun execution, long long ended_ns) except -1

    @cython.locals(step=Py_ssize_t)
    cpdef long long mean_ns(self, Py_ssize_t size, long long duration_ns)

    @cython.locals(step=Py_ssize_t)
    cpdef void clear(self)
