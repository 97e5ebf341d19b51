cimport cython
from streaminfer._request_cy cimport Timings as CTimings
from streaminfer.batching.queue._event_ring_cy cimport BatchRecord

cdef class Ticket

@cython.freelist(8)
cdef class Execution:
    cdef readonly list tickets
    cdef readonly list inputs
    cdef readonly Py_ssize_t live
    cdef readonly long long started_ns
    cdef public long long deadline_ns
    cdef public object task
    cdef public bint abandoned
    cdef public BatchRecord record
    cdef public long long effective_start_ns
    cdef public long long predecessor_end_ns
    cdef public long long settled_ns
    cdef public object observed

@cython.freelist(128)
cdef class Ticket:
    cdef object __weakref__
    cdef readonly object request
    cdef readonly object inputs
    cdef readonly object future
    cdef readonly CTimings timings
    cdef readonly long long deadline_ns
    cdef readonly int priority
    cdef readonly int bucket
    cdef public double cost
    cdef public double tag
    cdef readonly Execution execution
    cdef long long _arrival
    cdef bint _live
    cdef bint _queued
    cdef bint _held
    cdef object _stream_id
    cdef Ticket _previous
    cdef Ticket _next

@cython.locals(positions=list, position=Py_ssize_t, ticket=Ticket)
cpdef list abandoned_rows(object tickets, long long now_ns)
