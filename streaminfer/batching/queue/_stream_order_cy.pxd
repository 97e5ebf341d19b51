cimport cython
from streaminfer.batching.queue._ticket_cy cimport Ticket

@cython.final
cdef class StreamOrder:
    cdef readonly Py_ssize_t held_back
    cdef dict _tails

    @cython.locals(before=Ticket)
    cpdef bint join(self, Ticket ticket, object stream_id) except -1

    @cython.locals(before=Ticket, after=Ticket)
    cpdef leave(self, Ticket ticket)

    @cython.locals(after=Ticket)
    cpdef Ticket pass_turn(self, Ticket ticket)

    @cython.locals(tail=Ticket, ticket=Ticket, tickets=list)
    cpdef list held(self)

    @cython.locals(ticket=Ticket, tickets=list, least=int)
    cpdef list last_held(self, int priority)
