cimport cython

cdef double _FIRST_SHARE, _TINY

@cython.final
cdef class RampUp:
    cdef readonly bint active
    cdef long long _duration_ns, _began_ns
    cdef double _sum

    cpdef void begin(self, long long at_ns) noexcept
    cdef void stop(self) noexcept

    @cython.locals(elapsed_ns=cython.longlong)
    cpdef double share(self, long long now_ns) noexcept
    cpdef long long left_ns(self, long long now_ns) noexcept

    @cython.locals(share=double)
    cpdef bint admits(self, long long now_ns) noexcept

    @cython.locals(share=double)
    cdef bint would_admit(self, long long now_ns) noexcept
