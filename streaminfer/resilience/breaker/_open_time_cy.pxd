cimport cython

cdef double _JITTER
cdef long long _LCG_SPAN

@cython.final
cdef class OpenTime:
    cdef long long first_ns, longest_ns, next_ns
    cdef long long _base_ns, _random

    cdef void reset(self) noexcept
    cdef void lengthen(self) noexcept

    @cython.locals(shorter=double)
    cdef void _draw(self) noexcept
