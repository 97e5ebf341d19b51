cimport cython

cdef long long _RATE_WINDOW, _MAX_LIMITS, _RUNNING, _NO_BATCH
cdef double _INFINITE

# it holds no object but a text, so the garbage collector does not look at it
@cython.final
@cython.freelist(8)
cdef class BatchRecord:
    cdef readonly long long number, start_ns, end_ns
    cdef public long long expected_ns
    cdef readonly int worker
    cdef readonly int size, queued
    cdef readonly str reason
    cdef readonly bint ok

# final: calls from C look for no override
@cython.final
cdef class EventRing:
    cdef readonly long long requests, batches
    cdef readonly long long arrivals, releases, drops, last_end_ns
    cdef long long[::1] _arrival_ns, _limit_ns, _limits, _arrival_batch
    cdef int[::1] _priority
    cdef long long _limit_count
    cdef object _records
    cdef readonly dict released_by_reason, dropped_by_reason
    cdef long long _rows
    cdef list _free
    cdef object _drops

    @cython.locals(slot=cython.longlong)
    cpdef void arrived(self, long long now_ns, long long limit_ns, int priority) noexcept

    @cython.locals(count=cython.longlong, arrived=cython.longlong)
    cpdef long long arrived_until(self, long long first, long long until_ns, long long most) noexcept

    cpdef long long arrival_ns(self, long long number) noexcept

    @cython.locals(record=BatchRecord)
    cpdef BatchRecord released(self, long long now_ns, int size, object reason, int queued)

    cpdef void joined(self, long long arrival, BatchRecord record) noexcept

    cpdef object ended(self, BatchRecord record, long long now_ns)

    cpdef object finished(self, BatchRecord record, long long now_ns, bint ok)

    cpdef object started(self, BatchRecord record, long long now_ns)

    cpdef object dropped(self, long long now_ns, object reason, long long count=*)

    cpdef double gap_ns(self, long long now_ns) noexcept

    cpdef tuple gaps_ns(self, long long now_ns)

    @cython.locals(count=cython.longlong, elapsed_ns=cython.longlong)
    cdef double _gap_over(self, long long window, long long now_ns) noexcept

    @cython.locals(slot=cython.longlong, limits=list)
    cpdef list recent_limits_ns(self)

    @cython.locals(longest_ns=cython.longlong, back=cython.longlong, slot=cython.longlong)
    cpdef long long longest_limit_ns(self, long long since_ns) noexcept

    @cython.locals(count=cython.longlong, back=cython.longlong, slot=cython.longlong, classes=dict)
    cpdef dict recent_classes(self)

    cdef int _take_row(self) except -1
