cimport cython
from streaminfer.batching._queue_cy cimport Ticket as CTicket

cdef long long _NEVER

@cython.locals(
    ticket=CTicket, cap=Py_ssize_t, count=Py_ssize_t, index=Py_ssize_t, left=Py_ssize_t, time_ns=cython.longlong,
    latest_ns=cython.longlong, deadline_ns=cython.longlong)
cpdef bint full_batches_on_time(list tickets, const long long[::1] durations, long long now_ns)

@cython.locals(
    ticket=CTicket, ascending=bint, index=Py_ssize_t, latest_ns=cython.longlong, deadline_ns=cython.longlong)
cpdef bint fill_deadlines(list tickets, long long[::1] deadlines, long long patience_ns, long long now_ns)
