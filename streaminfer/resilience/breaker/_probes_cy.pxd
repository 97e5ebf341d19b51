cimport cython
from streaminfer.resilience.breaker._outcome_window_cy cimport OutcomeWindow as COutcomeWindow

cdef long long _MAX_SERIAL

@cython.final
cdef class HalfOpenProbes:
    cdef set in_flight
    cdef COutcomeWindow outcomes
    cdef Py_ssize_t _capacity
    cdef long long _serial

    cdef void clear(self) noexcept

    cdef bint is_full(self) noexcept
    cdef bint is_unused(self) noexcept

    @cython.locals(permit=cython.longlong)
    cdef long long begin(self, long long generation) noexcept

    cdef bint take_back(self, long long permit) noexcept
