cimport cython
from streaminfer.resilience.breaker._state_machine_cy cimport BreakerMachine as CBreakerMachine

cdef extern from *:
    """
    /* What time.monotonic_ns returns, without a Python call. */
    #if PY_VERSION_HEX >= 0x030D0000
    static CYTHON_INLINE long long streaminfer_monotonic_ns(void) {
        PyTime_t now = 0;
        (void)PyTime_MonotonicRaw(&now);
        return (long long)now;
    }
    #else
    static CYTHON_INLINE long long streaminfer_monotonic_ns(void) {
        return (long long)_PyTime_GetMonotonicClock();
    }
    #endif
    """
    # cpdef: the assignment of the same name in the source then makes a Python variable, and calls stay in C
    cpdef long long monotonic_ns "streaminfer_monotonic_ns"() noexcept

cdef double _LONGEST_S
cdef long long _EARLY_NS
cdef int _FRESH, _ENTERED, _OVER

cdef class BreakerCore

# no_gc: nothing that one of these refers to ever refers to it
@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Guard:
    cdef BreakerCore _core
    cdef object _outcome
    cdef long long _permit
    cdef long long _started_ns
    cdef int _phase

    cpdef returned(self, object result)
    cpdef raised(self, object error, object deadline_ns=*)
    cpdef judged(self, object outcome)
    cdef int _enter(self) except -1
    cdef int _exit(self, object error) except -1
    cdef int _leave(self) except -1
    cdef int _inside(self) except -1

cdef class BreakerCore:
    cdef readonly CBreakerMachine _machine
    cdef public object _clock
    cdef tuple _ignored
    cdef object _ignores
    cdef object _failure_result
    cdef object _ignore_result
    cdef object _deliver
    cdef public str name

    @cython.locals(guard=Guard)
    cpdef Guard enter(self)

    # final: a method called from C would otherwise search every Python subclass for an override
    @cython.final
    cdef long long _now(self) except? -1

    @cython.final
    @cython.locals(permit=cython.longlong, retry_after_s=double)
    cdef long long _begin(self, long long now_ns) except -1

    @cython.final
    cdef str _called(self)

    @cython.final
    @cython.locals(ended_ns=cython.longlong, duration_ns=cython.longlong)
    cdef int _end(self, long long permit, long long started_ns, object outcome, bint cut_off=*) except -1

    @cython.final
    cdef int _return(self, long long permit, long long started_ns, object result) except -1

    @cython.final
    @cython.locals(cut_off=bint, had_time=bint)
    cdef int _raise(self, long long permit, long long started_ns, object error, object deadline_ns) except -1

@cython.locals(seconds=double)
cdef long long _nanoseconds(object duration_s) except -1

@cython.locals(guard=Guard)
cdef Guard _guard_of(BreakerCore core)
