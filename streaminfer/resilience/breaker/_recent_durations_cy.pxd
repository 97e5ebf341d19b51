cimport cython

cdef long long _CAPACITY, _MIN_COUNT

@cython.final
cdef class RecentDurations:
    cdef long long[::1] _durations_ns
    cdef long long _count

    cdef void add(self, long long duration_ns) noexcept

    @cython.locals(count=cython.longlong)
    cdef object median_ns(self)
