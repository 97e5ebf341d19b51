cimport cython
from streaminfer.telemetry.histograms cimport _monotonic_cy
from streaminfer.telemetry.histograms cimport _histogram_cy
# the build finds dependencies only in cimports of this form, not in cimports of a module
from streaminfer.telemetry.histograms._monotonic_cy cimport MonotonicClock as CMonotonicClock
from streaminfer.telemetry.histograms._histogram_cy cimport HistogramState as CHistogramState

cdef int _GOOD, _LATE, _FAILED, _REJECTED
cdef int _SLOTS, _LEVEL_BITS
cdef long long _FAR_NS

cdef class BudgetState(_monotonic_cy.MonotonicClock):
    cdef readonly long long threshold_ns, period_ns, width_ns
    cdef readonly double allowed
    cdef readonly int levels
    cdef readonly long long total, bad, late, failed, rejected, ignored, quickest_ns
    cdef readonly tuple rejections, ignoring
    cdef readonly long long burn_window_ns, burn_short_ns
    cdef readonly double burn_starts_at, burn_ends_at
    cdef readonly long long burn_minimum, burn_grace_ns
    cdef long long _grace_ends_ns, _grace_events, _grace_bad
    cdef bint _burning
    cdef long long _burning_since_ns
    cdef long long _check_every_ns, _next_check_ns
    cdef long long _current, _next_ns
    cdef long long[::1] _all
    cdef long long[::1] _bad
    cdef long long[::1] _rejected

    # For compiled callers, which have checked the latency
    @cython.final
    cdef int count_ns(self, long long latency_ns) except -1

    cpdef tuple totals(self)

    @cython.locals(
        span_ns=cython.longlong, width_ns=cython.longlong, level=cython.int, index=cython.longlong, slot=cython.int)
    cpdef tuple history(self)

# Functions outside the class implement the methods above, because a cpdef method searches for overrides
@cython.locals(slot=cython.int)
cdef tuple _window(BudgetState state, long long window_ns)

@cython.locals(elapsed_ns=cython.longlong)
cdef int _count(BudgetState state, int kind) except -1

@cython.locals(
    first=cython.longlong, last=cython.longlong, index=cython.longlong, level=cython.int, slot=cython.int,
    total=cython.longlong, bad=cython.longlong, rejected=cython.longlong, elapsed_ns=cython.longlong)
cdef long long _advance(BudgetState state) except -1

@cython.locals(edge_ns=cython.longlong, width_ns=cython.longlong, level=cython.int)
cdef int _slot_before(BudgetState state, long long window_ns) noexcept

@cython.locals(
    slot=cython.int, events_before=cython.longlong, bad_before=cython.longlong, events=cython.double, bad=cython.double)
cdef double _admitted_burn(BudgetState state, long long window_ns, long long minimum) noexcept
