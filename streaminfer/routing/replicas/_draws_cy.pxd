cimport cython
from streaminfer.routing.replicas._replica_stats_cy cimport ReplicaStats as CReplicaStats

cdef unsigned long long _MASK, _STEP, _MIX_1, _MIX_2
cdef double _UNIT

@cython.final
cdef class UniformDraws:
    cdef unsigned long long _state

    cpdef double next(self) noexcept

    @cython.locals(slot=CReplicaStats, remaining=double, last=Py_ssize_t, number=Py_ssize_t)
    cpdef Py_ssize_t slot(self, list slots, double total, bint own) noexcept

cpdef double unit_hash(unsigned long long value) noexcept
