cimport cython
from streaminfer.batching.queue._ticket_cy cimport Ticket

@cython.final
cdef class StreamOrder:
    cdef readonly Py_ssize_t held_back
    cdef dict _lines

    @cython.locals(line=list)
    cpdef bint join(self, Ticket ticket, object stream_id) except -1

    cpdef leave(self, Ticket ticket)

    @cython.locals(line=list, after=Ticket)
    cpdef Ticket pass_turn(self, Ticket ticket)

    @cython.locals(line=list, tickets=list)
    cpdef list held(self)

    @cython.locals(line=list)
    cpdef Py_ssize_t held_in(self, object stream_id) except -1

    @cython.locals(line=list, ticket=Ticket, tickets=list, least=int)
    cpdef list last_held(self, int priority)
