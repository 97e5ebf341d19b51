cimport cython

@cython.final
cdef class OutcomeWindow:
    cdef readonly long long capacity
    cdef readonly long long calls
    cdef readonly long long failures
    cdef readonly long long slow
    cdef Py_ssize_t _size
    cdef Py_ssize_t _head
    cdef long long _slice_ns
    cdef long long _end_ns
    cdef unsigned char[::1] _outcomes
    cdef long long[::1] _slices

    @cython.locals(place=Py_ssize_t, oldest=cython.int)
    cpdef object add(self, bint failed, bint slow, long long now_ns)

    @cython.locals(place=Py_ssize_t, steps=cython.longlong)
    cpdef object advance(self, long long now_ns)

    @cython.locals(place=Py_ssize_t)
    cpdef object clear(self)
