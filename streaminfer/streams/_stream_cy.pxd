cimport cython

cdef int _WAITING
cdef int _RUNNING
cdef int _READY
cdef int _DROPPED
cdef long long _MAX_INSTANT_NS

@cython.freelist(128)
cdef class StreamResult:
    cdef object __weakref__
    cdef readonly object stream_id
    cdef readonly object outputs
    cdef readonly object error
    cdef readonly bint degraded
    cdef readonly long long number
    cdef readonly long long captured_ns
    cdef readonly long long arrived_ns
    cdef readonly long long completed_ns
    cdef readonly long long delivered_ns
    cdef readonly object position_s
    cdef readonly bint source_failed
    cdef public object _inputs
    cdef public bint _discontinuity
    cdef StreamResult _next_result
    cdef int _status

    cpdef long long _since_ns(self) except? -1

@cython.final
cdef class ResultQueue:
    cdef StreamResult head
    cdef StreamResult tail
    cdef Py_ssize_t count

    cdef append(self, StreamResult result)
    @cython.locals(result=StreamResult)
    cdef StreamResult pop(self)

cdef class StreamState:
    cdef readonly object stream_id
    cdef readonly long long received
    cdef readonly long long delivered
    cdef readonly long long failed
    cdef readonly dict dropped
    cdef readonly Py_ssize_t in_flight
    cdef readonly Py_ssize_t running
    cdef Py_ssize_t _max_waiting
    cdef bint _waits
    cdef object _selector
    cdef Py_ssize_t _max_in_flight
    cdef long long _max_age_ns
    cdef bint _resets_after_gap
    cdef readonly bint one_by_one
    cdef object _ages
    cdef ResultQueue _waiting
    cdef ResultQueue _sent
    cdef bint _discontinuity

    cpdef bint is_full(self) except -1
    cpdef bint has_too_many(self) except -1
    @cython.locals(head=StreamResult, tail=StreamResult)
    cpdef bint lags(self, long long now_ns, long long ends_ns)
    cpdef bint is_behind(self) except -1
    cdef bint _ages_in_source(self, StreamResult result) except -1
    cpdef bint has_room(self) except -1
    @cython.locals(result=StreamResult)
    cpdef bint offer(self, object inputs, long long captured_ns, object position_s, bint discontinuity, long long now_ns) except -1
    @cython.locals(head=StreamResult)
    cpdef bint can_send(self) except -1
    @cython.locals(result=StreamResult)
    cpdef StreamResult next(self, long long now_ns)
    cpdef long long deadline_ns(self, StreamResult result) except? -1
    @cython.locals(head=StreamResult)
    cpdef drop_late(self, long long now_ns, long long ends_ns)
    @cython.locals(tail=StreamResult)
    cpdef long long last_deadline_ns(self) except? -1
    @cython.locals(head=StreamResult)
    cpdef long long time_left_ns(self, long long now_ns) except? -1
    cpdef bint drop(self, StreamResult result, object reason) except -1
    cpdef bint complete(self, StreamResult result, object outputs, bint degraded, long long now_ns) except -1
    cpdef bint fail(self, StreamResult result, object error, long long now_ns) except -1
    @cython.locals(head=StreamResult)
    cpdef bint has_ready(self) except -1
    @cython.locals(result=StreamResult)
    cpdef StreamResult take(self, long long now_ns)
    @cython.locals(result=StreamResult, ready=ResultQueue)
    cpdef list close(self, bint drop_ready)
    cdef bint _end(self, StreamResult result, int status) except -1
    @cython.locals(head=StreamResult)
    cdef _skip_dropped(self)
    cdef _forget(self, StreamResult result, object reason)
    @cython.locals(head=StreamResult)
    cdef _pass_on_discontinuity(self, bint discontinuity)
    cdef _count(self, object reason)

@cython.locals(result=StreamResult)
cpdef StreamResult make_source_failure(object stream_id, object error, long long now_ns)
@cython.locals(result=StreamResult)
cdef StreamResult _new_result(object stream_id, long long number, long long captured_ns, object position_s, long long now_ns)
