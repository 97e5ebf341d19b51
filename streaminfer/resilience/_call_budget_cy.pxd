cimport cython

cdef long long _SLICES, _SLICE_NS
cdef double _TINY

cdef class CallBudget:
    cdef readonly long long requests, granted, throttled
    cdef double _ratio, _per_window
    cdef long long[::1] _requests_by_slice
    cdef long long[::1] _extra_by_slice
    cdef long long _requests_in_window, _extra_in_window, _number

    cpdef object count(self, long long now_ns)
    cpdef bint grant(self, long long now_ns) except -1
    @cython.locals(slot=cython.longlong, ago=cython.longlong)
    cpdef object refund(self, long long now_ns)
    cpdef double left(self, long long now_ns) except? -1

    @cython.locals(number=cython.longlong, slot=cython.longlong)
    cdef void _advance(self, long long now_ns) noexcept
