cimport cython

cdef unsigned long long _MASK, _STEP, _MIX_1, _MIX_2
cdef double _UNIT

@cython.final
cdef class UniformDraws:
    cdef unsigned long long _state

    cpdef double next(self) noexcept

cpdef double unit_hash(unsigned long long value) noexcept
