cimport cython

cdef int _FREE, _ACTIVE, _PROBING, _EJECTED
cdef double _MIN_SAMPLE_WEIGHT, _PEAK_FACTOR, _MAX_PEAK_WEIGHT, _LEAST_SUCCESS, _LEAST_RAMP, _UNKNOWN_ZONE_FACTOR
cdef long long NEVER_NS, _PEAK_MIN_SAMPLES, _GENERATIONS, _RECENT, _MIN_RECENT

cdef class Fleet

@cython.final
cdef class ReplicaStats:
    cdef readonly int state
    cdef readonly double weight, penalty, latency_ns, per_place_ns, success
    cdef readonly long long in_flight, attempts, succeeded, failed, rejected, ejections, until_ns
    cdef readonly int zone
    cdef unsigned long long key
    cdef double share, places, zone_ns
    cdef long long level, samples, consecutive_failures, generation, updated_ns, busy_ns, since_ns, probe_began_ns
    cdef long long bad_since_ns
    cdef bint slow_start, probe_in_flight, failed_last, zone_tried

    cdef void reset(self, double weight, double penalty, int zone, unsigned long long key, long long now_ns) noexcept
    cdef void begin_generation(self) noexcept
    cdef void forget(self, long long now_ns) noexcept

    @cython.locals(elapsed_ns=cython.longlong, part=double)
    cdef double ramp(self, long long now_ns, long long slow_start_ns) noexcept

    @cython.locals(weight=double)
    cdef double draw_share(self, long long now_ns, double mean_ns, long long decay_ns) noexcept

    cdef int tier(self, long long now_ns) noexcept
    cdef bint is_doubtful(self) noexcept

    @cython.locals(expected=double, served=double)
    cdef double cost(self, long long now_ns, Fleet fleet, long long decay_ns) noexcept

    @cython.locals(success=double)
    cdef double served(self, long long now_ns, long long decay_ns) noexcept

    @cython.locals(per_place_ns=double, mean_ns=double, expected_ns=double, silent_ns=cython.longlong)
    cdef double expected(self, long long now_ns, Fleet fleet, long long decay_ns) noexcept

    @cython.locals(decays=double)
    cdef double measurement_weight(self, long long now_ns, long long decay_ns) noexcept

    @cython.locals(weight=double, silent_ns=cython.longlong)
    cdef void learn(self, double duration_ns, double places, long long now_ns, long long decay_ns) noexcept

@cython.final
cdef class Fleet:
    cdef double mean_ns, least_ns, recent_ns
    cdef long long learned
    cdef list slots

    @cython.locals(other=ReplicaStats)
    cdef void learn(self, ReplicaStats slot, double per_place_ns) noexcept

    @cython.locals(other=ReplicaStats)
    cdef void tried(self, ReplicaStats slot) noexcept

    @cython.locals(other=ReplicaStats)
    cdef void join(self, ReplicaStats slot) noexcept
