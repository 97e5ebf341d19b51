cimport cython
from streaminfer.resilience.breaker._outcome_window_cy cimport OutcomeWindow as COutcomeWindow
from streaminfer.resilience.breaker._open_time_cy cimport OpenTime
from streaminfer.resilience.breaker._probes_cy cimport HalfOpenProbes
from streaminfer.resilience.breaker._ramp_up_cy cimport RampUp
from streaminfer.resilience.breaker._recent_durations_cy cimport RecentDurations
from streaminfer.resilience.breaker._transitions_cy cimport TransitionRing

cdef long long NEVER_NS
cdef int _CLOSED, _OPEN, _HALF_OPEN
cdef int _AUTOMATIC, _METRICS_ONLY, _DISABLED, _FORCED_OPEN
cdef int _BY_FAILURES, _BY_SLOWNESS, _OPEN_TIME_PASSED, _PROBES_SUCCEEDED, _PROBES_FAILED
cdef int _HALF_OPEN_TIME_PASSED, _RESET, _NOTHING
cdef int _SERIAL_BITS

# Methods that begin with an underscore call no Python and raise nothing. The others are overridden, under a lock, where
# compiled code is not atomic by itself.
cdef class BreakerMachine:
    cdef readonly int mode
    cdef readonly TransitionRing transitions
    cdef readonly long long permitted, rejected, succeeded, failed, slow, ignored, stale_permits, trips
    cdef readonly long long consecutive_trips
    cdef double _failure_rate, _slow_rate
    cdef long long _slow_ns, _minimum_calls, _minimum_probes, _half_open_ns
    cdef OpenTime _open_time
    cdef HalfOpenProbes _probes
    cdef RampUp _ramp
    cdef COutcomeWindow _window
    cdef long long _until_ns, _generation, _permit
    cdef int _state
    cdef bint _exceeded
    cdef RecentDurations _durations

    cpdef long long try_acquire(self, long long now_ns) except -1

    @cython.locals(slow=bint)
    cpdef bint record(self, bint ok, long long duration_ns, long long permit, long long now_ns) except -1

    cpdef bint cut_off(self, long long duration_ns, long long permit, long long now_ns) except -1
    @cython.locals(is_current=bint)
    cpdef bint release(self, long long permit, long long now_ns) except -1
    cpdef int state(self, long long now_ns) except -1
    cpdef bint permits(self, long long now_ns) except -1
    cpdef double share(self, long long now_ns) except -1.0

    @cython.locals(left_ns=cython.longlong)
    cpdef long long retry_after_ns(self, long long now_ns) except -1

    @cython.locals(
        judged=COutcomeWindow, state=cython.int, calls=cython.longlong, failures=cython.longlong, slow=cython.longlong,
        in_flight=cython.longlong)
    cpdef tuple snapshot(self, long long now_ns)

    cpdef object next_event(self)

    @cython.locals(before=cython.int)
    cpdef object set_mode(self, int mode, long long now_ns)

    cdef long long _admit(self, long long now_ns) noexcept
    cdef long long _acquire_probe(self, long long now_ns) noexcept

    cdef bint _take_probe(self, long long permit, long long now_ns) noexcept
    cdef void _count(self, bint ok, bint slow, long long duration_ns) noexcept
    cdef bint _has_room(self, long long now_ns) noexcept
    cdef bint _is_over(self, long long now_ns) noexcept

    cdef void _settle(self, long long now_ns) noexcept

    cdef int _verdict_at_limit(self) noexcept

    @cython.locals(probed=COutcomeWindow, cause=cython.int)
    cdef int _verdict_of_probes(self) noexcept

    @cython.locals(probed=COutcomeWindow)
    cdef void _conclude(self, int reason, long long at_ns) noexcept

    @cython.locals(window=COutcomeWindow, cause=cython.int)
    cdef void _judge_window(self, long long now_ns) noexcept

    cdef int _exceeds(self, double calls, double failures, double slow) noexcept
    cdef void _begin_closed(self) noexcept
    cdef void _begin_open(self, long long until_ns) noexcept

    @cython.locals(before=cython.int)
    cdef void _open(self, int reason, long long at_ns, long long calls, long long failures, long long slow) noexcept

    cdef void _begin_half_open(self) noexcept
