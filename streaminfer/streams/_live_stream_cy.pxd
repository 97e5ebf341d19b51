cimport cython
from streaminfer.streams.turns._fair_order_cy cimport Turn
from streaminfer.streams._outlet_cy cimport Outlet
from streaminfer.streams._stream_cy cimport StreamResult, StreamState, make_source_failure

@cython.final
cdef class Stream:
    cdef object __weakref__
    cdef readonly object stream_id
    cdef readonly StreamState state
    cdef readonly Turn turn
    cdef readonly dict sending
    cdef public bint is_announced
    cdef object _source
    cdef object _sender
    cdef Outlet _outlet
    cdef object _totals
    cdef object _error
    cdef bint _is_rejected
    cdef bint _is_stopped
    cdef bint _is_closing
    cdef bint _has_ended
    cdef object _room_waiter
    cdef object _drained
    cdef object _requests_ended
    cdef object _task

    @cython.locals(result=StreamResult)
    cpdef StreamResult next(self, long long now_ns)
    cpdef drop_late(self, long long now_ns, long long ends_ns)
    cpdef release_source(self, long long now_ns)
    cpdef complete(self, StreamResult result, object outputs, bint degraded, long long now_ns)
    cpdef fail(self, StreamResult result, object error, long long now_ns)
    cpdef drop(self, StreamResult result, object reason)
    cpdef remove(self, object sending)
    cpdef end_if_drained(self)
    cpdef crash(self, object error)
    @cython.locals(result=StreamResult, state=StreamState)
    cpdef StreamResult take(self, long long now_ns)
    cpdef stop(self)
    cpdef abandon(self)
    cdef bint _lags(self, long long now_ns) except -1
    cdef _announce(self, bint has_ready)
    cpdef _end(self, object _)
    cdef _report(self, message, error)
    cdef _settle_if_delivered(self)
    @cython.locals(now_ns=cython.longlong, state=StreamState, is_queued=bint, is_full=bint)
    cdef bint _accept(self, object item) except -1
