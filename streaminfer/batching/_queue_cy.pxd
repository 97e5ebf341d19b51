cimport cython
from streaminfer._request_cy cimport Timings as CTimings

cdef long long _NEVER
cdef int _WAITING, _RUNNING, _DONE
cdef Py_ssize_t _HUSKS_KEPT, _EMPTY_LEVELS_KEPT, _LIMITS_KEPT
cdef double _NEWEST

cdef class Ticket

cdef class Run:
    cdef readonly list tickets
    cdef readonly list inputs
    cdef readonly Py_ssize_t live
    cdef readonly long long started_ns
    cdef readonly long long deadline_ns
    cdef public object task
    cdef public bint begun
    cdef public bint abandoned

@cython.freelist(128)
cdef class Ticket:
    cdef object __weakref__
    cdef readonly object request
    cdef readonly object inputs
    cdef readonly object future
    cdef readonly CTimings timings
    cdef readonly long long deadline_ns
    cdef readonly int priority
    cdef readonly Run run
    cdef int _state
    cdef Ticket _previous
    cdef Ticket _next

cdef class _Level:
    cdef int priority
    cdef Ticket head
    cdef Ticket tail
    cdef Py_ssize_t count

cdef class RequestQueue:
    cdef readonly Py_ssize_t max_size
    cdef readonly Py_ssize_t waiting
    cdef readonly Py_ssize_t running
    cdef readonly Py_ssize_t admitted
    cdef readonly Py_ssize_t answered
    cdef readonly Py_ssize_t failed
    cdef readonly double batch_s
    cdef list _levels
    cdef long long[::1] _limits
    cdef _Level _recent
    cdef list _heap
    cdef Py_ssize_t _husks

    @cython.locals(ticket=Ticket, level=_Level, tail=Ticket)
    cpdef Ticket admit(self, object request, object inputs, object future, long long now_ns, long long deadline_ns, int priority)

    @cython.locals(ticket=Ticket, level=_Level, left=Py_ssize_t)
    cpdef list first(self, Py_ssize_t count)

    @cython.locals(level=_Level, found=Ticket)
    cpdef Ticket least_urgent(self)

    @cython.locals(ticket=Ticket, run=Run, taken=list, inputs=list, latest_ns=cython.longlong)
    cpdef Run take(self, object tickets, long long now_ns)

    cpdef bint end(self, Ticket ticket)

    @cython.locals(ticket=Ticket)
    cpdef list expire(self, long long now_ns)

    @cython.locals(
        ticket=Ticket, timings=CTimings, tickets=list, index=Py_ssize_t, size=Py_ssize_t,
        duration_s=double)
    cpdef deliver(self, Run run, list rows, long long assembled_ns, long long inferred_ns)

    @cython.locals(level=_Level, ticket=Ticket, oldest=cython.longlong)
    cdef long long _oldest(self) except -1

    @cython.locals(ticket=Ticket)
    cdef long long _next_deadline(self) except -1

    @cython.locals(level=_Level, fresh=_Level, position=Py_ssize_t)
    cdef _Level _level_of(self, int priority)

    @cython.locals(level=_Level, before=Ticket, after=Ticket)
    cdef void _unlink(self, Ticket ticket)

    @cython.locals(run=Run)
    cdef void _leave(self, Ticket ticket)

    cdef void _finish(self, Ticket ticket)

    @cython.locals(ticket=Ticket)
    cdef Ticket _earliest(self)

    @cython.locals(position=Py_ssize_t, ticket=Ticket, live=list)
    cdef void _rebuild(self)

    @cython.locals(parent=Ticket, position=Py_ssize_t, parent_position=Py_ssize_t, heap=list)
    cdef void _push(self, Ticket ticket)

    @cython.locals(heap=list, last=Ticket)
    cdef void _pop(self)

    @cython.locals(heap=list, ticket=Ticket, child=Ticket, sibling=Ticket, size=Py_ssize_t, position=Py_ssize_t, child_position=Py_ssize_t)
    cdef void _sift_down(self, Py_ssize_t start)
