cimport cython
from streaminfer.batching.queue._ticket_cy cimport Ticket as CTicket

cdef long long _NEVER
cdef double _SHARE_LIMIT
cdef double _COST_LIMIT

@cython.final
cdef class DurationTable:
    cdef readonly Py_ssize_t cap
    cdef const long long[::1] durations
    cdef const long long[::1] steps

    @cython.locals(full=Py_ssize_t, completes_ns=cython.longlong)
    cpdef long long completes_ns(self, Py_ssize_t ahead, long long start_ns) noexcept

    @cython.locals(ends_ns=cython.longlong)
    cpdef long long ends_ns(self, long long started_ns, Py_ssize_t size) noexcept

    cpdef bint is_shortly_after(self, long long end_ns, long long now_ns, Py_ssize_t size) noexcept

    @cython.locals(whole=Py_ssize_t, share=Py_ssize_t, share_ns=double, whole_ns=double)
    cpdef Py_ssize_t share_of_worker(self, Py_ssize_t queued, Py_ssize_t workers) noexcept

    @cython.locals(count=Py_ssize_t, time_ns=cython.longlong, index=Py_ssize_t, size=Py_ssize_t)
    cpdef bint all_on_time(self, const long long[::1] deadlines, long long now_ns)

@cython.locals(
    ticket=CTicket, ascending=bint, untimed=Py_ssize_t, index=Py_ssize_t, latest_ns=cython.longlong,
    deadline_ns=cython.longlong)
cpdef Py_ssize_t fill_deadlines(list tickets, long long[::1] deadlines, long long patience_ns) except? -9223372036854775807
