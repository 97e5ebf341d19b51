cimport cython
from streaminfer._request_cy cimport Timings as CTimings

cdef class Ticket

@cython.freelist(8)
cdef class Run:
    cdef readonly list tickets
    cdef readonly list inputs
    cdef readonly Py_ssize_t live
    cdef readonly long long started_ns
    cdef readonly long long deadline_ns
    cdef public object task
    cdef public bint begun
    cdef public bint abandoned
    cdef public long long sequence
    cdef public long long turn_ns
    cdef public long long behind_ns

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
    cdef readonly Run run
    cdef bint _live
    cdef bint _waits
    cdef Ticket _previous
    cdef Ticket _next
