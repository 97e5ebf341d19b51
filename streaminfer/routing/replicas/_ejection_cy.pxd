cimport cython
from streaminfer.routing.replicas._replica_stats_cy cimport ReplicaStats as CReplicaStats

cdef int ACTIVE, PROBING, EJECTED
cdef double _DEFAULT_LATENCY_FACTOR
cdef long long NEVER_NS, _MIN_SAMPLES

@cython.final
cdef class OutlierEjection:
    cdef long long replicas, ejected
    cdef long long _consecutive_failures, _eject_ns, _max_eject_ns, _slow_start_ns
    cdef double _factor, _max_ejected
    cdef bint _ejects_outliers
    cdef list slots

    cdef void force_eject(self, CReplicaStats slot) noexcept
    cdef void end_forced_ejection(self, CReplicaStats slot, long long now_ns) noexcept
    cdef void settle(self, CReplicaStats slot, long long now_ns) noexcept
    cdef void succeeded(self, CReplicaStats slot, double duration_ns, double places, long long now_ns) noexcept
    cdef void failed(self, CReplicaStats slot, bint raised, long long now_ns) noexcept

    cdef bint is_overlong(self, CReplicaStats slot, double duration_ns, double places) noexcept

    cdef bint _has_slow_mean(self, CReplicaStats slot) noexcept

    @cython.locals(others=cython.longlong, latencies_ns=double, other=CReplicaStats)
    cdef bint _is_lasting(self, CReplicaStats slot, long long now_ns) noexcept

    cdef bint _is_measured_peer(self, CReplicaStats other, CReplicaStats slot) noexcept

    @cython.locals(others=cython.longlong, slower=cython.longlong, other=CReplicaStats)
    cdef bint _exceeds_most(self, CReplicaStats slot, double latency_ns, double per_place_ns) noexcept

    @cython.locals(limit=cython.longlong, in_service=cython.longlong, times=cython.longlong)
    cdef void _eject(self, CReplicaStats slot, long long now_ns) noexcept
    cdef void _take_out(self, CReplicaStats slot, long long until_ns) noexcept
