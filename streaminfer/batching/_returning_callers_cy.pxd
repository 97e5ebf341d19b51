cimport cython
from streaminfer.batching.queue._event_ring_cy cimport EventRing
from streaminfer.batching.queue._queue_cy cimport RequestQueue
from streaminfer.batching.queue._ticket_cy cimport Execution as CExecution, Ticket as CTicket

cdef double _NEWEST_WEIGHT, _NEWEST_DELAY_WEIGHT, _FEW, _MOST
cdef Py_ssize_t _PAUSE
cdef long long _SPLIT_NS, _NEVER

@cython.final
cdef class ReturningCallers:
    cdef RequestQueue _queue
    cdef EventRing _events
    cdef object _expected_ns
    cdef readonly double at_once, share
    cdef readonly long long until_ns
    cdef readonly bint is_waiting
    cdef double _delay_ns
    cdef long long _end_ns, _duration_ns, _arrivals, _split_ns
    cdef Py_ssize_t _size, _pause
    cdef bint _is_stream

    @cython.locals(returned=double)
    cpdef object woken(self)

    @cython.locals(
        events=EventRing, arrived=cython.longlong, returned=cython.longlong, delay_ns=cython.longlong, ticket=CTicket)
    cpdef object ended(self, CExecution execution, long long now_ns)

    @cython.locals(
        queue=RequestQueue, queued=Py_ssize_t, missing=cython.longlong, together_ns=cython.longlong,
        saved_ns=cython.longlong, batch_ns=cython.longlong, left_ns=double, end_ns=cython.longlong,
        limit_ns=cython.longlong)
    cpdef bint should_wait(self, long long now_ns, Py_ssize_t full_at) except *

    cpdef object sent(self, bint is_whole)

    cpdef object record_split(self, long long now_ns)

    cpdef Py_ssize_t sharing_workers(self, Py_ssize_t free, long long now_ns) noexcept
