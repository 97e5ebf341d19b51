cimport cython

cdef long long _RATE_WINDOW, _LIMITS_KEPT, _REASONS_KEPT, _RUNNING, _NOT_TOLD, _NO_BATCH
cdef double _INFINITE

@cython.final
cdef class _ReasonCounts:
    cdef list names
    cdef long long[::1] counts
    cdef dict _numbers

    @cython.locals(known=object, number=int)
    cdef int add(self, object reason, long long count) except -1

    @cython.locals(number=Py_ssize_t)
    cdef int _number_of(self, object reason) except -1

    @cython.locals(number=Py_ssize_t)
    cdef dict by_reason(self)

# final: calls from C look for no override
@cython.final
cdef class EventRing:
    cdef readonly long long requests, batches
    cdef readonly long long arrivals, releases, drops, last_end_ns
    cdef long long[::1] _arrival_ns, _limit_ns, _limits, _arrival_batch
    cdef int[::1] _priority
    cdef long long _limits_seen
    cdef long long[::1] _start_ns, _end_ns, _worker, _expected_ns
    cdef int[::1] _size, _queued, _reason
    cdef signed char[::1] _ok
    cdef _ReasonCounts _released
    cdef long long[::1] _drop_ns, _drop_count
    cdef int[::1] _drop_reason
    cdef long long _drop_entries
    cdef _ReasonCounts _dropped
    cdef long long _rows, _free_count
    cdef long long[::1] _free
    cdef dict _outlived

    @cython.locals(slot=cython.longlong)
    cpdef void arrived(self, long long now_ns, long long limit_ns, int priority) noexcept

    @cython.locals(number=cython.longlong, slot=cython.longlong)
    cpdef long long released(self, long long now_ns, int size, object reason, int queued) except *

    cpdef void joined(self, long long arrival, long long number) noexcept

    cpdef void expected(self, long long number, long long duration_ns) noexcept

    @cython.locals(slot=cython.longlong, row=object)
    cpdef object ended(self, long long number, long long now_ns)

    @cython.locals(slot=cython.longlong, runs=bint)
    cpdef bint finished(self, long long number, long long now_ns, bint ok) except -1

    @cython.locals(slot=cython.longlong)
    cpdef object started(self, long long number, long long now_ns)

    @cython.locals(number=int, entries=cython.longlong, last=cython.longlong, slot=cython.longlong)
    cpdef object dropped(self, long long now_ns, object reason, long long count=*)

    cpdef double gap_ns(self, long long now_ns) noexcept

    cpdef tuple gaps_ns(self, long long now_ns)

    @cython.locals(kept=cython.longlong, passed=cython.longlong)
    cdef double _gap_over(self, long long window, long long now_ns) noexcept

    @cython.locals(slot=cython.longlong, limits=list)
    cpdef list recent_limits_ns(self)

    @cython.locals(longest_ns=cython.longlong, back=cython.longlong, slot=cython.longlong)
    cpdef long long longest_limit_ns(self, long long since_ns) noexcept

    @cython.locals(kept=cython.longlong, back=cython.longlong, slot=cython.longlong, classes=dict)
    cpdef dict recent_classes(self)

    @cython.locals(
        free=cython.longlong[::1], count=cython.longlong, lowest=cython.longlong, row=cython.longlong,
        position=cython.longlong, child=cython.longlong)
    cdef long long _take_row(self) noexcept

    @cython.locals(free=cython.longlong[::1], position=cython.longlong, parent=cython.longlong)
    cdef object _free_row(self, long long row)

    @cython.locals(larger=cython.longlong[::1], position=cython.longlong)
    cdef object _grow(self)
