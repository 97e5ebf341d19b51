cimport cython
from streaminfer.routing.replicas._draws_cy cimport UniformDraws, unit_hash
from streaminfer.routing.replicas._ejection_cy cimport OutlierEjection
from streaminfer.routing.replicas._replica_stats_cy cimport Fleet, ReplicaStats as CReplicaStats

cdef int FREE, ACTIVE, PROBING, EJECTED, DRAINING
cdef int _SUCCESS, _FAILURE, _REJECTED
cdef double _OUTCOME_WEIGHT
cdef int _NO_TIER
cdef long long _SLOTS, _PLACES
cdef int _SLOT_BITS, _GENERATION_BITS

@cython.final
cdef class P2CBalancer:
    cdef readonly long long panics
    cdef long long _choices, _decay_ns, _slow_start_ns
    cdef bint _skipped_slow_starter
    cdef double _own_zone_share, _other_zones_share
    cdef Fleet _fleet
    cdef UniformDraws _draws
    cdef list _slots
    cdef OutlierEjection _ejection

    @cython.locals(number=Py_ssize_t, slot=CReplicaStats)
    cpdef Py_ssize_t add(
        self, double weight, double penalty, int zone, unsigned long long key, bint slowly, long long now_ns
    ) except -1

    @cython.locals(slot=CReplicaStats)
    cpdef object drain(self, Py_ssize_t number)

    @cython.locals(slot=CReplicaStats)
    cpdef object remove(self, Py_ssize_t number)

    cpdef object force_eject(self, Py_ssize_t number)
    cpdef object end_forced_ejection(self, Py_ssize_t number, long long now_ns)

    @cython.locals(slot=CReplicaStats)
    cpdef double ramp(self, Py_ssize_t number, long long now_ns) except -1.0

    @cython.locals(slot=CReplicaStats)
    cpdef object begin(self, long long now_ns)

    @cython.locals(slot=CReplicaStats)
    cpdef object settle(self, long long now_ns)

    @cython.locals(best=Py_ssize_t, at_home=Py_ssize_t)
    cpdef long long choose(self, Py_ssize_t excluded, long long now_ns) except *

    @cython.locals(best=Py_ssize_t)
    cpdef long long choose_for_stream(self, unsigned long long key, long long now_ns) except *

    @cython.locals(number=Py_ssize_t, best=Py_ssize_t, highest=double, score=double, slot=CReplicaStats)
    cpdef Py_ssize_t of_stream(self, unsigned long long key, long long now_ns) except -2

    @cython.locals(number=Py_ssize_t)
    cpdef Py_ssize_t best(self, Py_ssize_t excluded, long long now_ns) except -2

    @cython.locals(lowest=int, number=Py_ssize_t, slot=CReplicaStats)
    cpdef list ranked(self, long long now_ns)

    @cython.locals(slot=CReplicaStats)
    cpdef long long expected_ns(self, Py_ssize_t number, long long now_ns) except *

    @cython.locals(slot=CReplicaStats, places=cython.longlong, current=bint)
    cpdef object done(self, long long token, int outcome, long long duration_ns, long long now_ns)

    @cython.locals(slot=CReplicaStats)
    cdef long long _take(self, Py_ssize_t number, long long now_ns) noexcept

    cdef void _succeeded(self, CReplicaStats slot, long long duration_ns, long long places, long long now_ns) noexcept
    cdef void _failed(
        self, CReplicaStats slot, int outcome, long long duration_ns, long long places, long long now_ns
    ) noexcept

    @cython.locals(expected_ns=double)
    cdef bint _learn_at_least(
        self, CReplicaStats slot, long long duration_ns, long long places, long long now_ns
    ) noexcept

    @cython.locals(
        own=double, others=double, measured=cython.longlong, speed=double, number=Py_ssize_t, slot=CReplicaStats)
    cdef void _weigh(self, Py_ssize_t excluded, bint slowly, long long now_ns) noexcept

    @cython.locals(
        best=Py_ssize_t, equal=cython.longlong, least=double, penalty=double, number=Py_ssize_t, slot=CReplicaStats,
        cost=double)
    cdef Py_ssize_t _cheapest(self, long long now_ns) noexcept

    @cython.locals(total=double, best=Py_ssize_t, number=Py_ssize_t, slot=CReplicaStats)
    cdef Py_ssize_t _pick(self, bint own, long long now_ns) noexcept

    @cython.locals(number=Py_ssize_t, slot=CReplicaStats, least=double, cost=double)
    cdef Py_ssize_t _or_slow_starter(self, Py_ssize_t best, Py_ssize_t excluded, long long now_ns) noexcept

    cdef Py_ssize_t _better(self, Py_ssize_t first, Py_ssize_t second, long long now_ns) noexcept
    cdef double _cost(self, CReplicaStats slot, long long now_ns) noexcept
