cimport cython

cdef long long _RATE_WINDOW, _LIMITS_KEPT, _REASONS_KEPT, _RUNNING, _NO_BATCH
cdef double _INFINITE

@cython.locals(so_far=cython.longlong)
cdef object _count(dict counts, object reason, long long count)

# final: calls from C look for no override
@cython.final
cdef class EventRing:
    cdef readonly long long requests, batches
    cdef readonly long long arrivals, releases, drops
    cdef long long[::1] _arrival_ns, _limit_ns, _limits, _arrival_batch
    cdef int[::1] _priority
    cdef long long _limits_seen
    cdef long long[::1] _start_ns, _end_ns, _worker, _expected_ns
    cdef int[::1] _size, _queued
    cdef signed char[::1] _ok
    cdef object _reasons, _recent_drops
    cdef dict _released, _dropped
    cdef long long _rows
    cdef list _free
    cdef dict _outlived

    @cython.locals(slot=cython.longlong)
    cpdef void arrived(self, long long now_ns, long long limit_ns, int priority) noexcept

    @cython.locals(number=cython.longlong, slot=cython.longlong)
    cpdef long long released(self, long long now_ns, int size, object reason, int queued) except *

    cpdef void joined(self, long long arrival, long long number) noexcept

    cpdef void expected(self, long long number, long long duration_ns) noexcept

    @cython.locals(slot=cython.longlong, row=object)
    cpdef bint finished(self, long long number, long long now_ns, bint ok) except -1

    @cython.locals(slot=cython.longlong)
    cpdef object started(self, long long number, long long now_ns)

    @cython.locals(at_ns=cython.longlong, more=cython.longlong)
    cpdef object dropped(self, long long now_ns, object reason, long long count=*)

    @cython.locals(kept=cython.longlong, passed=cython.longlong)
    cpdef double gap_ns(self, long long now_ns) noexcept

    @cython.locals(slot=cython.longlong, limits=list)
    cpdef list recent_limits_ns(self)

    @cython.locals(longest_ns=cython.longlong, back=cython.longlong, slot=cython.longlong)
    cpdef long long longest_limit_ns(self, long long since_ns) noexcept

    @cython.locals(kept=cython.longlong, back=cython.longlong, slot=cython.longlong, classes=dict)
    cpdef dict recent_classes(self)

    cdef long long _take_row(self) except *
