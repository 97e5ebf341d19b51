cimport cython
from streaminfer.batching.queue._ticket_cy cimport Execution as CRun

cdef Py_ssize_t _STEPS
cdef long long _SLOW
cdef Py_ssize_t _SLOW_IN_A_ROW

@cython.final
cdef class BatchSampler:
    cdef const long long[::1] _expected, _steps
    cdef unsigned char[::1] _is_open
    cdef long long _interval_ns, _always_ns, _left_ns, _phase
    cdef Py_ssize_t _in_a_row
    cdef double _last_ratio

    @cython.locals(step=Py_ssize_t, expected_ns=cython.longlong, in_a_row=Py_ssize_t)
    cpdef bint skip(self, Py_ssize_t size, long long duration_ns, bint cancelled, bint opens=*) except -1

    cpdef bint skip_execution(self, CRun execution, long long ended_ns) except -1

    cpdef long long smoothed_ns(self, Py_ssize_t size, long long duration_ns)

    @cython.locals(step=Py_ssize_t)
    cpdef void restart(self)
