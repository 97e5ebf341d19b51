cimport cython
from cpython cimport time
from streaminfer._request_cy cimport Response as CResponse, Timings as CTimings
from streaminfer.resilience.limit._state_machine_cy cimport LimitMachine as CLimitMachine

cdef long long NEVER_NS, _EARLY_NS, _UNKNOWN
cdef int _INFEASIBLE, _FRESH, _ENTERED, _OVER, _QUEUED

cdef class LimitCore:
    cdef readonly CLimitMachine _machine
    cdef public object _clock
    cdef public object _objective
    cdef public object _queue
    cdef object _slo
    cdef object _budget
    cdef public str name

    @cython.locals(now_ns=cython.longlong, permit=cython.longlong)
    cpdef long long enter(self, object priority, object deadline_ns, object request, object admission) except -2

    @cython.locals(now_ns=cython.longlong, queued_ns=cython.longlong, batch_ns=cython.longlong, own=CResponse, timings=CTimings)
    cpdef object leave(self, long long permit, object response, bint timed)

    @cython.locals(now_ns=cython.longlong, allowed_ns=cython.longlong, ended=bint)
    cpdef object fail(self, long long permit, object error, object deadline_ns)

    # final: a method called from C would otherwise search every Python subclass for an override
    @cython.final
    cdef long long _now(self) except? -1

    @cython.final
    cdef int _freed(self, bint ended) except -1

    cpdef object read_objective(self)

    @cython.final
    cdef int _check_inner(self, object admission, object request, object deadline_ns, long long now_ns) except -1

    @cython.final
    cdef int _reject(self, long long verdict, object deadline_ns, long long now_ns) except -1

@cython.final
@cython.freelist(64)
cdef class LimitGuard:
    cdef LimitCore _core
    cdef object _priority
    cdef object _deadline_ns
    cdef long long _permit
    cdef bint _learns
    cdef int _phase

    cdef int _check_fresh(self) except -1
    cdef int _enter(self) except -1
    cdef int _exit(self, object error) except -1
