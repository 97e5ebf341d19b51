cimport cython

cdef int _GOOD, _BAD, _LATE
cdef double _MIN_SHARE, _REOPEN_SHARE, _MAX_FAILURE_RATE, _SIGNIFICANCE, _MAX_LATE_RATE
cdef double _MIN_GAIN, _MAX_GAIN, _MAX_GROWTH, _HEAVY_CUT
cdef double _CUT_FRACTION_WIDTH, _MAX_HEADROOM, _SUSPECT_HEADROOM, _MIN_RISE, _MAX_RISE
cdef double _HEADROOM_FALL, _LIGHT_USE_DECAY
cdef long long _CUT_FRACTION_STEPS, _SILENT_STEPS, _SILENCE_STEPS, _MISSED_PER_RESPONSE

@cython.locals(excess=double)
cpdef bint exceeds(long long count, long long requests, double rate, double cluster_size) noexcept

cdef class RouteShare:
    cdef readonly int device
    cdef readonly bint costlier_on_device, costlier, last, fixed
    cdef readonly double fraction
    cdef readonly bint closed, suspect
    cdef public bint stalled
    cdef public long long in_flight, succeeded, degraded, reserve_ns, reserve_until_ns
    cdef readonly long long idle_since_ns, latency_ns, quickest_ns, cuts, flaps
    cdef readonly double headroom
    cdef double _credit, _gain, _cut_fraction, _used
    cdef bint _in_cooldown, _was_cut, _is_settling
    cdef long long _steps_since_cut, _offered, _sent, _good, _bad, _late, _silent, _run, _runs, _squares, _batch_ns

    cpdef bint offers(self) except -1
    cpdef object take(self)
    cpdef bint is_out_of_reach(self, long long limit_ns) except -1
    cpdef object settle(self, int outcome, long long duration_ns, long long limit_ns, long long now_ns, long long batch_ns=*)
    @cython.locals(headroom=double)
    cpdef bint risks(self, long long now_ns, long long deadline_ns, long long finish_ns) except -1

    cdef void _begin_step(self) noexcept
    cdef void _age(self, long long missed, long long steps) noexcept
    cdef bint _is_silent(self) noexcept

    @cython.locals(sent_fraction=double)
    cdef object _cut(self, double factor)

    cdef void _close(self) noexcept
    cdef void _reopen(self) noexcept
    @cython.locals(fraction=double, low=double, grown=double)
    cdef object _grow(self, bint lightly_used)

    @cython.locals(bad=cython.longlong, good=cython.longlong, runs=cython.longlong, squares=cython.double)
    cdef bint _is_failing(self) noexcept

    @cython.locals(rise=double, headroom=double, attempts=cython.longlong)
    cdef object _adjust_headroom(self, bint lightly_used, long long steps)
