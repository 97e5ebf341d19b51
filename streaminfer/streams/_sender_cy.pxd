cimport cython
from streaminfer._request_cy cimport Request as CRequest, make_request
from streaminfer.streams.turns._fair_order_cy cimport FairOrder, Turn
from streaminfer.streams.turns._late_frames_cy cimport LateFrames
from streaminfer.streams._live_stream_cy cimport Stream
from streaminfer.streams._outlet_cy cimport WakeUps
from streaminfer.streams._stream_cy cimport StreamResult

cdef double _NEWEST
cdef double _RESERVE
cdef long long _TIMER_NS
cdef long long _LEAST_TIMERS
cdef double _SHORTEST_PAUSE_S
cdef int _LONGEST_PAUSE

cdef class Sender

@cython.final
@cython.freelist(128)
cdef class Sending:
    cdef Sender _sender
    cdef bint _is_cancelled
    cdef readonly Stream stream
    cdef readonly StreamResult result
    cdef readonly CRequest request
    cdef object call
    cdef object pause
    cdef int rejections
    cdef bint is_yielding
    cdef long long sent_ns

    cpdef cancel(self)
    @cython.locals(sender=Sender)
    cpdef receive(self, object response, object error)

@cython.final
cdef class Sender:
    cdef readonly object clock
    cdef readonly object states
    cdef readonly WakeUps wake_ups
    cdef object _admission
    cdef object _begin_call
    cdef object _service
    cdef object _loop
    cdef object _context
    cdef FairOrder _order
    cdef bint _is_scheduled
    cdef Py_ssize_t _capacity
    cdef object _full_load
    cdef object _spare_load
    cdef object _settings
    cdef object _next_batch
    cdef object _timer
    cdef long long _batch_end_ns
    cdef long long _starts_ns
    cdef Py_ssize_t _workers, _max_workers
    cdef long long _timer_delay_ns
    cdef double _lead_ns
    cdef readonly LateFrames late_frames
    cdef Py_ssize_t _places_taken
    cdef Py_ssize_t _in_flight
    cdef Py_ssize_t _free_workers
    cdef dict _paused
    cdef Py_ssize_t _freed_places

    cpdef join(self)
    cdef _count_places(self)
    cpdef leave(self, Stream stream)
    cpdef queue(self, Stream stream, bint continues)
    @cython.locals(stream=Stream, result=StreamResult, now_ns=cython.longlong)
    cdef _handle_outcome(self, Sending sending, object response, object error)
    @cython.locals(stream=Stream)
    cpdef end(self, Sending sending)
    cdef _schedule(self)
    @cython.locals(places=Py_ssize_t, wait_ns=double)
    cdef Py_ssize_t _available_places(self, long long now_ns) except? -1
    cdef _cancel_timer(self)
    cpdef _after_waking(self)
    cpdef _on_timer(self)
    @cython.locals(room=Py_ssize_t, share=Py_ssize_t, limit=Py_ssize_t, turn=Turn, late=list, now_ns=cython.longlong)
    cpdef _send_waiting(self)
    @cython.locals(sending=Sending, result=StreamResult, request=CRequest)
    cdef _send_next(self, Stream stream)
    cdef _try(self, Sending sending, bint resets)
    @cython.locals(stream=Stream, result=StreamResult, request=CRequest)
    cdef _send(self, Sending sending)
    cdef _pause(self, Sending sending, object retry_after_s, object reason)
    @cython.locals(sending=Sending)
    cdef _retry(self, object admission, long long now_ns)
    cpdef _send_again(self, Sending sending)
    @cython.locals(stream=Stream)
    cdef _crash(self, Sending sending, object error)
    @cython.locals(stream=Stream, result=StreamResult, now_ns=cython.longlong)
    cdef _fail(self, Sending sending, object error)
    cdef _rejection(self, Sending sending)
    cdef _current_reason(self, CRequest request)
