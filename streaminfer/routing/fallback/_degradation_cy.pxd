cimport cython
from streaminfer.routing.fallback._route_share_cy cimport RouteShare, exceeds

cdef double _CROWDED_MISS_RATE, _CALM_MISS_RATE, _HEAVY_MISS_FACTOR, _MIN_SHARE_TO_CUT, _LIGHT_USE
cdef long long _MIN_REQUESTS, _MAX_STEPS

cdef class DegradationController:
    cdef readonly list shares
    cdef readonly long long step_ns, next_step_ns
    cdef long long _requests, _missed, _steps, _burning_steps
    cdef list _missed_by_device
    cdef bint _burning

    cpdef bint arrive(self, long long now_ns) except -1

    @cython.locals(device=Py_ssize_t)
    cpdef object missed(self, object devices, long long limit_ns)  # a bit per device, of which there may be more than 64

    @cython.locals(share=RouteShare, out_of_reach=cython.bint)
    cdef bint _is_out_of_reach(self, int device, long long limit_ns) except -1

    @cython.locals(share=RouteShare)
    cpdef object step(self, long long now_ns, bint burning)

    @cython.locals(share=RouteShare, device=Py_ssize_t, position=Py_ssize_t, missed=cython.longlong, steps=cython.longlong)
    cdef object _adjust(self)

    @cython.locals(share=RouteShare, position=Py_ssize_t, costliest=Py_ssize_t)
    cdef object _relieve(self, int device, double factor)

    @cython.locals(share=RouteShare)
    cdef bint _is_lightly_used(self, int device) except -1

    @cython.locals(share=RouteShare, cheaper=RouteShare, other=Py_ssize_t)
    cdef bint _may_grow(self, Py_ssize_t position) except -1

    @cython.locals(later=RouteShare, other=Py_ssize_t, alone=bint)
    cdef bint _is_alone(self, Py_ssize_t position, int device) except -1

    @cython.locals(share=RouteShare)
    cdef bint _has_open_route(self) except -1

    @cython.locals(share=RouteShare, position=Py_ssize_t)
    cdef object _close_one(self)

    @cython.locals(share=RouteShare)
    cdef object _reopen_all(self)
