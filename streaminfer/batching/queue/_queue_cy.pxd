cimport cython
from streaminfer._request_cy cimport Timings as CTimings
from streaminfer.batching.queue._deadlines_cy cimport DeadlineOrder
from streaminfer.batching.queue._event_ring_cy cimport BatchRecord, EventRing
from streaminfer.batching.queue._feasibility_cy cimport DurationTable
from streaminfer.batching.queue._stream_order_cy cimport StreamOrder
from streaminfer.batching.queue._ticket_cy cimport Execution, Ticket

cdef long long _NEVER
cdef Py_ssize_t _MAX_EMPTY_LEVELS
cdef int _MOST_URGENT_PRIORITY
cdef double _NEWEST_WEIGHT

cdef class _Level:
    cdef int priority
    cdef Ticket head
    cdef Ticket tail
    cdef Py_ssize_t count
    cdef Py_ssize_t with_deadline

cdef class RequestQueue:
    cdef readonly Py_ssize_t max_size
    cdef readonly Py_ssize_t queued
    cdef readonly Py_ssize_t running
    cdef StreamOrder _order
    cdef readonly Py_ssize_t succeeded
    cdef readonly Py_ssize_t failed
    cdef readonly double batch_s
    cdef list _levels
    cdef _Level _recent
    cdef readonly EventRing events
    cdef DeadlineOrder _deadlines

    @cython.locals(ticket=Ticket)
    cpdef Ticket admit(self, object request, object inputs, object future, long long now_ns, long long deadline_ns, int priority, int bucket=*, object stream_id=*)

    @cython.locals(ticket=Ticket, level=_Level, remaining=Py_ssize_t)
    cpdef list first(self, Py_ssize_t count)

    @cython.locals(
        batch=list, cap=Py_ssize_t, ahead=Py_ssize_t, remaining=Py_ssize_t, first=bint, time_ns=cython.longlong,
        latest_ns=cython.longlong, level=_Level, ticket=Ticket)
    cpdef list batch_if_all_on_time(self, DurationTable table, long long now_ns)

    @cython.locals(level=_Level, ticket=Ticket, ahead=Py_ssize_t, overdue=Py_ssize_t)
    cpdef Py_ssize_t ahead_of_deadline(self, int priority, long long before_ns) except -1

    @cython.locals(level=_Level, last=Ticket, ticket=Ticket, held=list)
    cpdef Ticket least_urgent(self)

    @cython.locals(
        ticket=Ticket, execution=Execution, batch=list, inputs=list, latest_ns=cython.longlong, record=BatchRecord)
    cpdef Execution take(self, object tickets, long long now_ns, object reason, DurationTable table=*)

    cpdef bint end(self, Ticket ticket)

    @cython.locals(ticket=Ticket)
    cpdef list expire(self, long long now_ns)

    @cython.locals(
        ticket=Ticket, timings=CTimings, tickets=list, index=Py_ssize_t, size=Py_ssize_t,
        duration_s=double)
    cpdef deliver(self, Execution execution, list rows, long long assembled_ns, long long inferred_ns)

    @cython.locals(level=_Level, count=Py_ssize_t)
    cdef bint _several_priorities(self) except -1

    @cython.locals(level=_Level, ticket=Ticket, oldest=cython.longlong)
    cdef long long _oldest(self) except -1

    @cython.locals(level=_Level, position=Py_ssize_t)
    cdef _Level _level_of(self, int priority)

    cpdef list held(self)

    @cython.locals(level=_Level, tail=Ticket)
    cdef _link(self, Ticket ticket)

    @cython.locals(level=_Level, before=Ticket, after=Ticket)
    cdef void _unlink(self, Ticket ticket)

    @cython.locals(execution=Execution, after=Ticket)
    cdef _finish(self, Ticket ticket)
