cimport cython
from streaminfer.telemetry.histograms cimport _monotonic_cy
from streaminfer.telemetry.histograms cimport _histogram_cy
# the build finds dependencies only in cimports of this form, not in cimports of a module
from streaminfer.telemetry.histograms._monotonic_cy cimport MonotonicClock as CMonotonicClock
from streaminfer.telemetry.histograms._histogram_cy cimport HistogramState as CHistogramState

cdef class RollingState(_monotonic_cy.MonotonicClock):
    cdef readonly Py_ssize_t slices
    cdef readonly long long slice_ns
    cdef list _ring
    cdef long long[::1] _numbers
    cdef CHistogramState _open
    cdef CHistogramState _merged
    cdef long long _number
    cdef long long _slice_end_ns

    # For compiled callers, which have checked the duration
    @cython.final
    cdef int count_ns(self, long long nanoseconds) except -1

    @cython.locals(position=Py_ssize_t, part=CHistogramState, total=cython.longlong)
    cpdef long long live_count(self) except -1

    @cython.locals(part=CHistogramState)
    cpdef object reset(self)

@cython.locals(position=Py_ssize_t)
cdef int _rotate(RollingState state) except -1

@cython.locals(position=Py_ssize_t, part=CHistogramState, merged=CHistogramState)
cdef int _merge(RollingState state) except -1

@cython.locals(position=Py_ssize_t)
cdef bint _is_live(RollingState state, Py_ssize_t position) noexcept
