cimport cython
from streaminfer.streams.turns._fair_order_cy cimport Turn
from streaminfer.streams._live_stream_cy cimport Stream
from streaminfer.streams._stream_cy cimport StreamResult, StreamState

cdef double _NEWEST
cdef double _SLOW_FACTOR
cdef double _SHARE_LIMIT
cdef double _COST_LIMIT

@cython.final
cdef class LateFrames:
    cdef object _batch_ns
    cdef object _expected_ns
    cdef bint _reports_batch_time
    cdef Py_ssize_t _max_in_flight
    cdef Py_ssize_t _workers
    cdef bint _has_limit
    cdef double _mean_service_ns
    cdef long long _now_ns
    cdef long long _ends_ns
    cdef bint _is_behind
    cdef readonly long long next_end_ns

    @cython.locals(rows=Py_ssize_t, later_rows=Py_ssize_t, frames=Py_ssize_t, turn=Turn, stream=Stream, state=StreamState, earliest_ns=cython.longlong)
    cpdef Py_ssize_t estimate(self, list queued, Py_ssize_t room, long long now_ns, long long starts_ns, long long lead_ns, Py_ssize_t workers) except? -1
    @cython.locals(turn=Turn, stream=Stream, rows=Py_ssize_t, share=Py_ssize_t, whole=Py_ssize_t, share_ns=double, whole_ns=double)
    cpdef Py_ssize_t share_of_worker(self, list queued, Py_ssize_t room, Py_ssize_t workers) except? -1
    cdef long long _slow_batch_ns(self, Py_ssize_t rows) except *
    cdef Py_ssize_t _rows_of(self, StreamState state) except? -1
    @cython.locals(
        turn=Turn, stream=Stream, state=StreamState, rows=Py_ssize_t, low=Py_ssize_t, high=Py_ssize_t, ends_ns=cython.longlong
    )
    cdef Py_ssize_t _rows_in_time(self, list queued, Py_ssize_t room, long long starts_ns) except? -1
    @cython.locals(turn=Turn, stream=Stream)
    cpdef release_sources(self, list queued, long long now_ns)
    cpdef update(self, object capabilities)
    cpdef learn(self, long long service_ns, bint is_in_time)
    cpdef bint is_late(self, Stream stream) except -1
    cpdef bint is_denied(self, Stream stream, StreamResult result, long long now_ns) except -1
