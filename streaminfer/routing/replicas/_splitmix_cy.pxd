cimport cython

cdef unsigned long long _MASK, _STEP, _MIX_1, _MIX_2
cdef double _UNIT

@cython.final
cdef class SplitMix:
    cdef unsigned long long _state

    cdef double unit(self) noexcept

cpdef unsigned long long mixed(unsigned long long value) noexcept
cpdef double uniform(unsigned long long value) noexcept
