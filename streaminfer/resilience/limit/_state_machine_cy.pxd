cimport cython

cdef long long _NEVER
cdef int _FULL, _LATE, _PASSES
cdef long long _SAMPLES, _PLAIN_SAMPLES, _REFUSED_FOR_PROBE
cdef double _LOWEST, _BACK_OFF, _OF_OBJECTIVE, _BATCHES, _UNLOADED, _STILL_QUEUED, _STILL_FALLING, _LATE_COUNTS, _PROBE, _LOWERED, _AS_BEFORE
cdef double _DOUBT, _WINDOW_NS, _WINDOW_CALLS, _RETURN_NS

# Methods that begin with an underscore call no Python and raise nothing. The others are overridden, under a lock, where
# compiled code is not atomic by itself.
cdef class LimitMachine:
    cdef readonly double limit, goal_ns, waited_ns, service_ns, interval_ns
    cdef readonly bint burning
    cdef readonly long long allowed, in_flight, admitted, refused, late, answered, timed_out, overloaded, released
    cdef readonly long long stale, rounds
    cdef double _min_limit, _max_limit, _reserve, _tighten, _tight, _delay_ns, _objective_ns
    cdef bint _adaptive, _probing, _probed, _settled
    cdef double _window_ns, _lowest_ns, _unloaded_ns, _usual_ns, _lowered_at_ns, _full_ns, _probe_share
    cdef double _queued_ns, _served_ns, _plain_ns, _plain_squares, _late_ns
    cdef long long _queued_calls, _plain_calls, _late_calls, _drops, _freed, _peak, _needed, _needed_plain
    cdef long long _refused_before, _fastest_ns, _fastest_before_ns, _batch_ns, _began_ns, _round_ns
    cdef long long _idle_ns, _idle_since_ns, _freed_ns

    @cython.locals(verdict=cython.int)
    cpdef long long try_acquire(self, long long priority, long long deadline_ns, long long now_ns) except -2

    cpdef int look(self, long long priority, long long deadline_ns, long long now_ns) except -2
    cpdef bint is_tight(self, long long deadline_ns, long long now_ns) except -1

    @cython.locals(took_ns=cython.longlong)
    cpdef bint answer(self, long long permit, long long queued_ns, long long batch_ns, long long now_ns) except -1

    @cython.locals(least_ns=double)
    cpdef bint time_out(self, long long permit, long long allowed_ns, long long now_ns) except -1
    cpdef bint overload(self, long long permit, long long now_ns) except -1
    cpdef object release(self, long long now_ns)
    cpdef object refuse_late(self)
    cpdef object discard(self)
    cpdef object aim(self, double objective_ns, bint burning)

    @cython.locals(drain_ns=double, lull_ns=double)
    cpdef long long drain_ns(self, long long now_ns) except -1

    @cython.locals(places=double)
    cdef long long _places(self, long long priority) noexcept

    cdef void _take_back(self, long long now_ns) noexcept
    @cython.locals(needed=cython.longlong)
    cdef bint _end_if_enough(self, long long now_ns) noexcept

    @cython.locals(busy_ns=double, interval_ns=double, calls=double, mean_ns=double, least_ns=double, before=double, probed=bint, lowered=bint)
    cdef void _end_round(self, long long now_ns) noexcept

    @cython.locals(mean_ns=double, variance=double)
    cdef double _plain_error_ns(self) noexcept

    cdef void _return_goal(self, long long now_ns) noexcept

    @cython.locals(least=double, waits=double, delay_ns=double, goal_ns=double, floor_ns=double)
    cdef void _measure(self, double least_ns, long long now_ns) noexcept

    @cython.locals(first=bint, deeper=bint, most_ns=double)
    cdef void _watch_unloaded(self, double mean_ns, double least_ns, long long now_ns) noexcept

    @cython.locals(refused=cython.longlong)
    cdef bint _is_probe_worth_it(self, double mean_ns) noexcept

    @cython.locals(window_ns=double)
    cdef void _begin_window(self, long long now_ns, bint doubtful) noexcept

    @cython.locals(limit=double, most=double)
    cdef void _step(self, double gradient) noexcept

    @cython.locals(limit=double)
    cdef void _apply(self) noexcept

    cdef void _begin_round(self, long long now_ns) noexcept
