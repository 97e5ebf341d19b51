cimport cython
from streaminfer._request_cy cimport Request as CRequest, make_request, make_response, with_deadline
from streaminfer.batching.queue._ticket_cy cimport Ticket as CTicket

cdef class Chain

cdef object _outputs_of(object response)

@cython.final
@cython.freelist(128)
cdef class Passage:
    cdef Chain _chain
    cdef object _receive
    cdef readonly CRequest request
    cdef readonly object awaited
    cdef readonly CTicket ticket
    cdef list _tokens
    cdef bint _is_counted
    cdef object _cancelled

    cdef object _end(self, object outputs, object error)

@cython.final
cdef class Chain:
    cdef tuple _enters
    cdef tuple _exits
    cdef object _validate
    cdef int _validate_at
    cdef object _objective
    cdef readonly object batcher
    cdef object _source
    cdef bint _batcher_has_clock
    cdef object _submit
    cdef object _call
    cdef object _reject
    cdef object _wait
    cdef dict _tasks
    cdef public object idle
    cdef public object clock
    cdef public object loop

    cpdef Py_ssize_t in_flight(self)
    @cython.locals(passage=Passage)
    cpdef object end_requests(self)
    @cython.locals(request=CRequest, passage=Passage)
    cpdef Passage open(self, object inputs, object timeout_s, object priority, object stream_id, object tenant, object subject, object tags, object key, object store, object waits)
    cpdef Passage open_request(self, CRequest request, object timeout_s, object loop=*, object receive=*)
    cpdef object outputs(self, Passage passage, object outcome)
    @cython.locals(ticket=CTicket)
    cpdef object response(self, Passage passage, object outcome)
    @cython.locals(was_stopped=bint, is_late=bint)
    cpdef object failed(self, Passage passage, object error)
    cpdef object deadline_ns(self, object own_ns, object timeout_s, object now_ns)
    @cython.locals(passage=Passage)
    cdef Passage _new_passage(self, CRequest request, object receive)
    @cython.locals(passage=Passage, tokens=list, position=int, ticket=CTicket)
    cdef Passage _enter(self, CRequest request, object now_ns, object receive)
    cdef bint _is_late(self, CRequest request) except -1
    cdef bint _leave(self, Passage passage) except -1
    cdef object _respond(self, Passage passage, object response)
    @cython.locals(position=Py_ssize_t)
    cdef object _exit(self, object request, list tokens, object outcome)
