cimport cython
from streaminfer.batching.queue._feasibility_cy cimport DurationTable
from streaminfer.batching.queue._queue_cy cimport RequestQueue, _Level
from streaminfer.batching.queue._stream_order_cy cimport StreamOrder
from streaminfer.batching.queue._ticket_cy cimport Execution, Ticket

cdef double _ALLOWANCE
cdef Py_ssize_t _MIN_TAGS

cdef class FairQueue(RequestQueue):
    cdef public Py_ssize_t horizon
    cdef dict _weights
    cdef dict _finish_tags
    cdef Py_ssize_t _cleanup_size
    cdef double _virtual

    cpdef list first(self, Py_ssize_t count)

    @cython.locals(size=Py_ssize_t, batch=list, ends_ns=cython.longlong, ticket=Ticket)
    cpdef list batch_if_all_on_time(self, DurationTable table, long long now_ns)

    @cython.locals(execution=Execution, ticket=Ticket)
    cpdef Execution take(self, object tickets, long long now_ns, object reason, DurationTable table=*)

    cpdef bint end(self, Ticket ticket)

    @cython.locals(level=_Level, ticket=Ticket, tag=double, ahead=Py_ssize_t)
    cpdef Py_ssize_t ahead_of(self, object stream_id, int priority) except -1

    cpdef bint precedes(self, object stream_id, Ticket ticket) except -1

    @cython.locals(last=Ticket, ticket=Ticket, tag=double, other=double, level=_Level)
    cpdef Ticket least_urgent(self)

    @cython.locals(finish=double)
    cdef double _tag_of(self, object stream_id) except? -1.0

    @cython.locals(finish=double, turns=double)
    cdef double _tag_of_held(self, Ticket ticket) except? -1.0

    @cython.locals(before=Ticket, after=Ticket, level=_Level, finish=double)
    cdef _link(self, Ticket ticket)

    @cython.locals(retained=dict, finish=double)
    cdef _forget_some(self)
