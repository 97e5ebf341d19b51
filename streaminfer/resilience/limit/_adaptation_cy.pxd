cimport cython

cdef long long NEVER_NS
cdef long long _SAMPLES, _MAX_UNTIMED_SAMPLES, _REJECTED_FOR_PROBE
cdef double _MIN_STEP, _BACK_OFF, _TARGET_OF_OBJECTIVE, _QUEUED_BATCHES, _UNLOADED, _STILL_QUEUED, _STILL_FALLING
cdef double _LATE_FACTOR, _PROBE_SHARE, _PROBE_PATIENCE, _LOWERED_RATIO, _UNCHANGED_RATIO
cdef double _STANDARD_ERRORS, _PROBE_INTERVAL_NS, _PROBE_INTERVAL_CALLS, _TARGET_RETURN_NS

@cython.final
cdef class LimitAdaptation:
    cdef readonly double limit, target_ns, queue_delay_ns, service_ns, mean_ns
    cdef readonly bint burning
    cdef readonly long long allowed, windows, fastest_ns
    cdef double _min_limit, _max_limit, _tighten, _target_factor, _max_queue_delay_ns, _objective_ns
    cdef bint _adaptive, _probing, _probed, _has_probe_result
    cdef double _probe_due_ns, _lowest_ns, _unloaded_ns, _lowered_at_ns, _full_ns, _probe_share, _probe_ends_ns
    cdef double _queued_ns, _served_ns, _untimed_ns, _untimed_squares, _late_ns
    cdef long long _queued_calls, _untimed_calls, _late_calls, _drops, _peak, _needed, _needed_untimed
    cdef long long _rejected_before, _fastest_ns, _batch_ns, _began_ns, _window_began_ns

    cdef void begin(self, long long now_ns) noexcept
    cdef void set_objective(self, double objective_ns, bint burning) noexcept
    cdef void resume(self, long long in_flight, long long now_ns) noexcept
    cdef void reject(self, long long in_flight, long long rejected, long long now_ns) noexcept
    cdef bint add(
        self, long long permit, long long duration_ns, long long queued_ns, long long batch_ns, long long in_flight,
        long long rejected, long long now_ns
    ) noexcept

    cdef bint add_late(
        self, long long permit, long long allowed_ns, long long in_flight, long long rejected, long long now_ns
    ) noexcept
    cdef bint add_drop(self, long long permit, long long in_flight, long long rejected, long long now_ns) noexcept

    @cython.locals(needed=cython.longlong)
    cdef bint _end_window_if_full(self, long long in_flight, long long rejected, long long now_ns) noexcept

    @cython.locals(calls=double, mean_ns=double, least_ns=double, in_use=double, probed=bint, lowered=bint)
    cdef void _end_window(self, long long in_flight, long long rejected, long long now_ns) noexcept

    @cython.locals(mean_ns=double, variance=double)
    cdef double _untimed_error_ns(self) noexcept

    @cython.locals(returned=double)
    cdef void _return_target(self, long long now_ns) noexcept

    @cython.locals(least=double, batches=double, delay_ns=double)
    cdef void _measure(self, double least_ns, long long rejected, long long now_ns) noexcept

    @cython.locals(first=bint, deeper=bint, upper_ns=double)
    cdef void _watch_unloaded(self, double mean_ns, double least_ns, long long rejected, long long now_ns) noexcept

    cdef bint _is_probe_worth_it(self, double mean_ns, long long rejected) noexcept
    cdef bint _is_without_queue(self, double mean_ns, long long rejected) noexcept

    @cython.locals(interval_ns=double)
    cdef void _schedule_probe(self, long long rejected, long long now_ns, bint immediately) noexcept

    @cython.locals(limit=double)
    cdef void _step(self, double gradient) noexcept

    @cython.locals(limit=double)
    cdef void _apply(self) noexcept

    cdef void _begin_window(self, long long in_flight, long long now_ns) noexcept
