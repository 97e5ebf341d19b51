cimport cython

cdef Py_ssize_t _CAPACITY, _FIELDS

@cython.final
cdef class TransitionRing:
    cdef readonly Py_ssize_t pending
    cdef readonly long long lost
    cdef long long[::1] _numbers
    cdef Py_ssize_t _head

    @cython.locals(place=Py_ssize_t)
    cdef void add(
        self, int before, int after, int reason, long long at_ns, long long calls, long long failures, long long slow
    ) noexcept

    @cython.locals(
        place=Py_ssize_t, before=cython.longlong, after=cython.longlong, reason=cython.longlong,
        at_ns=cython.longlong, calls=cython.longlong, failures=cython.longlong, slow=cython.longlong)
    cdef object pop(self)
