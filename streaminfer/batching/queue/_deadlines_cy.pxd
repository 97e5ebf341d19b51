cimport cython
from streaminfer.batching.queue._ticket_cy cimport Ticket

cdef long long _NEVER
cdef Py_ssize_t _MAX_DEAD_ENTRIES

cdef class DeadlineOrder:
    cdef list _tickets
    cdef Py_ssize_t _first
    cdef Py_ssize_t _dead_entries

    @cython.locals(ticket=Ticket)
    cpdef Ticket earliest(self)

    @cython.locals(ticket=Ticket)
    cpdef long long next_ns(self) except -1

    @cython.locals(ticket=Ticket, live=list)
    cpdef ended(self)

    @cython.locals(tickets=list, low=Py_ssize_t, high=Py_ssize_t, middle=Py_ssize_t, other=Ticket)
    cpdef push(self, Ticket ticket)
