cimport cython

cdef int _GOOD, _BAD, _LATE
cdef double _LEAST, _RETURNS_WITH, _FAILING, _CROWDED, _CALM, _FIRST_GAIN, _LAST_GAIN
cdef double _SUSPECT_HEADROOM, _EASY, _MOST_GROWTH, _HEAVY, _WIDE, _TOO_LATE, _MOST_HEADROOM, _LEAST_RISE, _MOST_RISE, _FALL, _KEPT_WHEN_EASY
cdef long long _FEW, _LONGEST, _FORGETS

cdef class RouteShare:
    cdef readonly int device
    cdef readonly bint dear_there, dear, last, fixed
    cdef readonly double share
    cdef readonly bint closed, suspect, stalled
    cdef public long long in_flight
    cdef readonly long long idle_since_ns, latency_ns, cuts, departures
    cdef readonly double headroom
    cdef double _credit, _gain, _trouble, _used
    cdef bint _rests, _was_cut, _settles
    cdef long long _calm, _offered, _taken, _good, _bad, _late

    cpdef bint offers(self) except -1
    cpdef object take(self)
    cpdef object stall(self)
    cpdef object settle(self, int outcome, long long duration_ns, long long limit_ns, long long now_ns)
    @cython.locals(headroom=double)
    cpdef bint risks(self, long long now_ns, long long deadline_ns, long long finish_ns) except -1

    @cython.locals(bad=cython.longlong)
    cdef bint _failing(self) noexcept

    @cython.locals(rise=double, kept=double)
    cdef object _make_headroom(self, bint easy, long long steps)

    @cython.locals(share=double, grown=double)
    cdef object _grow_once(self, bint easy)

    cdef object _grow(self, bint easy, long long steps)

cdef class DegradationController:
    cdef readonly list rungs
    cdef readonly long long step_ns, next_step_ns
    cdef long long _requests, _missed, _steps, _burning_steps
    cdef list _missed_there
    cdef bint _burning

    cpdef bint arrive(self, long long now_ns) except -1

    @cython.locals(device=Py_ssize_t)
    cpdef object missed(self, long long devices)

    @cython.locals(rung=RouteShare, device=Py_ssize_t)
    cpdef object step(self, long long now_ns, bint burning)

    @cython.locals(rung=RouteShare, device=Py_ssize_t, position=Py_ssize_t, missed=cython.longlong, steps=cython.longlong)
    cdef object _look(self)

    @cython.locals(rung=RouteShare, dearest=RouteShare)
    cdef object _make_room(self, int device, double factor)

    @cython.locals(rung=RouteShare)
    cdef bint _is_easy(self, int device) except -1

    @cython.locals(rung=RouteShare, cheaper=RouteShare, other=Py_ssize_t)
    cdef bint _may_grow(self, Py_ssize_t position) except -1

    @cython.locals(taken=double)
    cdef object _cut(self, RouteShare rung, double factor)

    @cython.locals(rung=RouteShare, position=Py_ssize_t)
    cdef object _close_one(self)

    @cython.locals(rung=RouteShare)
    cdef object _open_all(self)
