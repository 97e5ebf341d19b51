cimport cython

cdef long long NEVER_NS

@cython.locals(last_ns=cython.longlong, switch_ns=cython.longlong, overrun_ns=cython.longlong)
cpdef long long switch_at(
    long long now_ns, long long deadline_ns, long long finish_ns, long long reserve_ns, long long default_ns) noexcept

@cython.freelist(128)
cdef class Attempt:
    cdef object _task
    cdef readonly long long cancellations, started_ns, switch_ns, deadline_ns
    cdef readonly bint interrupted

@cython.final
cdef class Attempts:
    cdef dict _in_flight
    cdef public long long timer_ns

    @cython.locals(attempt=Attempt)
    cpdef Attempt enter(
        self, object task, long long cancellations, long long now_ns, long long switch_ns, long long deadline_ns)

    cpdef object leave(self, Attempt attempt)

    @cython.locals(attempt=Attempt, earliest_ns=cython.longlong)
    cpdef object interrupt_due(self, long long now_ns)
