cimport cython
from streaminfer._request_cy cimport Response
from streaminfer.routing.fallback._attempts_cy cimport Attempt, Attempts, switch_at
from streaminfer.routing.fallback._degradation_cy cimport DegradationController
from streaminfer.routing.fallback._route_share_cy cimport RouteShare

cdef long long NEVER_NS, _REUSE_NS, _MIN_DEFAULT_RESERVE_NS
cdef int _GOOD, _MAX_REUSES

cdef class FastPath:
    cdef DegradationController _degradation
    cdef RouteShare _share
    cdef object _name, _admission
    cdef bint _enforces, _has_default
    cdef int _reuses_left
    cdef long long _reuse_until_ns, _reused_finish_ns
    cdef int _reused_priority
    cdef public bint is_open
    cdef public Attempts attempts
    cdef readonly long long requests
    cdef readonly object verdict

    @cython.locals(
        share=RouteShare, deadline_ns=cython.longlong, finish_ns=cython.longlong, switch_ns=cython.longlong)
    cpdef Attempt take(self, object request, long long now_ns, object task)

    @cython.locals(left_ns=cython.longlong, default_ns=cython.longlong, switch_ns=cython.longlong)
    cpdef long long switch_ns(
        self, long long now_ns, long long deadline_ns, long long finish_ns, long long reserve_ns, bint enforces
    ) noexcept

    @cython.locals(limit_ns=cython.longlong)
    cpdef Response respond(self, Attempt attempt, object response, long long now_ns)

    cpdef object discard_verdict(self)
