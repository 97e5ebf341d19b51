cimport cython
from streaminfer.resilience.limit._adaptation_cy cimport LimitAdaptation

cdef long long NEVER_NS
cdef int _FULL, _INFEASIBLE, _PASSES
cdef double _TINY

# Methods that begin with an underscore call no Python and raise nothing. The others are overridden, under a lock, where
# compiled code is not atomic by itself.
cdef class LimitMachine:
    cdef readonly LimitAdaptation adaptation
    cdef readonly double interval_ns
    cdef readonly long long in_flight, admitted, rejected, infeasible, succeeded, deadline_exceeded, inner_rejected
    cdef readonly long long ignored, stale_permits
    cdef double _reserve
    cdef long long _freed, _window_began_ns, _idle_ns, _idle_since_ns, _freed_ns

    @cython.locals(verdict=cython.int)
    cpdef long long try_acquire(self, long long priority, long long deadline_ns, long long now_ns) except -2

    cpdef int check(self, long long priority, long long deadline_ns, long long now_ns) except -2
    cpdef bint is_tight(self, long long deadline_ns, long long now_ns) except -1

    @cython.locals(duration_ns=cython.longlong, ended=bint)
    cpdef bint succeed(self, long long permit, long long queued_ns, long long batch_ns, long long now_ns) except -1

    @cython.locals(ended=bint)
    cpdef bint exceed_deadline(self, long long permit, long long allowed_ns, long long now_ns) except -1
    @cython.locals(ended=bint)
    cpdef bint reject_inside(self, long long permit, long long now_ns) except -1
    cpdef object release(self, long long now_ns)
    cpdef object reject_infeasible(self)
    cpdef object discard(self)
    cpdef object set_objective(self, double objective_ns, bint burning)

    @cython.locals(drain_ns=double)
    cpdef long long drain_ns(self, long long now_ns) except -1

    @cython.locals(completions=cython.longlong)
    cpdef long long wait_ns(self, long long priority, long long ahead, long long now_ns) except -1

    @cython.locals(permits=double)
    cdef long long _permits(self, long long priority) noexcept

    cdef void _take_back(self, long long now_ns) noexcept

    @cython.locals(busy_ns=double, interval_ns=double)
    cdef bint _follow(self, bint ended, long long now_ns) noexcept
