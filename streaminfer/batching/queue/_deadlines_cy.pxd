cimport cython
from streaminfer.batching.queue._ticket_cy cimport Ticket

cdef long long _NEVER
cdef Py_ssize_t _MAX_DEAD_ENTRIES

cdef class DeadlineHeap:
    cdef list _heap
    cdef Py_ssize_t _dead_entries

    @cython.locals(ticket=Ticket)
    cpdef Ticket earliest(self)

    @cython.locals(ticket=Ticket)
    cpdef long long next_ns(self) except -1

    cpdef ended(self)

    @cython.locals(position=Py_ssize_t, ticket=Ticket, live=list)
    cdef void _rebuild(self)

    @cython.locals(parent=Ticket, position=Py_ssize_t, parent_position=Py_ssize_t, heap=list)
    cpdef push(self, Ticket ticket)

    @cython.locals(heap=list, last=Ticket)
    cdef void _pop(self)

    @cython.locals(heap=list, ticket=Ticket, child=Ticket, sibling=Ticket, size=Py_ssize_t, position=Py_ssize_t, child_position=Py_ssize_t)
    cdef void _sift_down(self, Py_ssize_t start)
