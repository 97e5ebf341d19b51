cimport cython
from streaminfer.resilience.breaker._outcome_window_cy cimport OutcomeWindow as COutcomeWindow

cdef long long _NEVER
cdef int _CLOSED, _OPEN, _HALF_OPEN
cdef int _AUTOMATIC, _METRICS_ONLY, _DISABLED, _FORCED_OPEN
cdef int _BY_FAILURES, _BY_SLOWNESS, _OPEN_TIME_PASSED, _PROBES_SUCCEEDED, _PROBES_FAILED
cdef int _HALF_OPEN_TIME_PASSED, _FORCED, _NOTHING
cdef int _SERIAL_BITS
cdef long long _SERIALS, _LCG_SPAN
cdef Py_ssize_t _EVENTS_KEPT, _EVENT_FIELDS
cdef long long _SUCCESSES_KEPT, _FEWEST_SUCCESSES
cdef double _JITTER

# Methods that begin with an underscore call no Python and raise nothing. The others are overridden, under a lock, where
# compiled code is not atomic by itself.
cdef class BreakerMachine:
    cdef readonly int mode
    cdef public bint listening
    cdef readonly Py_ssize_t pending
    cdef readonly long long lost, permitted, refused, succeeded, failed, slow, released, stale, trips, consecutive_trips
    cdef double _failure_rate, _slow_rate
    cdef long long _slow_ns, _minimum_calls, _minimum_probes, _open_ns, _max_open_ns, _half_open_ns
    cdef Py_ssize_t _half_open_calls
    cdef COutcomeWindow _window
    cdef long long _random, _base_open_ns, _next_open_ns, _until_ns
    cdef long long _generation, _permit, _serial
    cdef int _state
    cdef bint _exceeded
    cdef long long _probes, _probe_failures, _probe_slow, _out
    cdef long long[::1] _slots
    cdef long long[::1] _took_ns
    cdef long long _successes
    cdef long long[::1] _events
    cdef Py_ssize_t _event_head

    cpdef long long try_acquire(self, long long now_ns) except -1

    @cython.locals(slow=bint)
    cpdef bint record(self, bint ok, long long duration_ns, long long permit, long long now_ns) except -1

    cpdef bint cut_off(self, long long duration_ns, long long permit, long long now_ns) except -1
    cpdef bint release(self, long long permit, long long now_ns) except -1
    cpdef int state(self, long long now_ns) except -1
    cpdef bint permits(self, long long now_ns) except -1

    @cython.locals(left_ns=cython.longlong)
    cpdef long long retry_after_ns(self, long long now_ns) except -1

    @cython.locals(state=cython.int, probing=bint)
    cpdef tuple snapshot(self, long long now_ns)

    @cython.locals(
        place=Py_ssize_t, before=cython.longlong, after=cython.longlong, reason=cython.longlong,
        at_ns=cython.longlong, calls=cython.longlong, failures=cython.longlong, slow=cython.longlong)
    cpdef object next_event(self)

    @cython.locals(before=cython.int, reason=cython.int)
    cpdef object set_mode(self, int mode, long long now_ns)

    @cython.locals(permit=cython.longlong, place=Py_ssize_t)
    cdef long long _acquire_probe(self, long long now_ns) noexcept

    @cython.locals(place=Py_ssize_t)
    cdef bint _take_back(self, long long permit) noexcept

    cdef bint _take_probe(self, long long permit, long long now_ns) noexcept
    cdef void _count(self, bint ok, bint slow, long long duration_ns) noexcept
    @cython.locals(known=cython.longlong, place=Py_ssize_t, other=Py_ssize_t, below=cython.longlong)
    cdef long long _usual_ns(self) noexcept
    cdef void _count_probe(self, bint ok, bint slow) noexcept
    cdef bint _is_over(self, long long now_ns) noexcept

    @cython.locals(reason=cython.int, at_ns=cython.longlong)
    cdef void _settle(self, long long now_ns) noexcept

    cdef int _verdict_at_limit(self) noexcept

    @cython.locals(why=cython.int)
    cdef int _verdict_of_probes(self) noexcept

    @cython.locals(reason=cython.int)
    cdef void _judge_probes(self, long long now_ns) noexcept

    @cython.locals(window=COutcomeWindow, why=cython.int)
    cdef void _judge_window(self, long long now_ns) noexcept

    cdef int _exceeds(self, double calls, double failures, double slow) noexcept
    cdef void _begin_closed(self) noexcept

    @cython.locals(calls=cython.longlong, failures=cython.longlong, slow=cython.longlong)
    cdef void _close(self, long long at_ns) noexcept

    @cython.locals(before=cython.int)
    cdef void _open(self, int reason, long long at_ns, long long calls, long long failures, long long slow) noexcept

    @cython.locals(place=Py_ssize_t)
    cdef void _begin_half_open(self, long long now_ns) noexcept

    @cython.locals(shorter=double)
    cdef void _draw(self) noexcept

    @cython.locals(place=Py_ssize_t)
    cdef void _note(
        self, int before, int after, int reason, long long at_ns, long long calls, long long failures, long long slow
    ) noexcept
