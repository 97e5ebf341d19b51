cimport cython
from streaminfer.caching.single_flight._flight_cy cimport Flight as CFlight, FlightTable as CFlightTable, Refreshes as CRefreshes

cdef int _FRESH
cdef int _WAITS
cdef int _VALUE
cdef int _ERROR
cdef int _OVER

cdef class LoopFlights

@cython.final
cdef class Caller:
    cdef public object _asyncio_future_blocking
    cdef int _state
    cdef bint _enforced
    cdef LoopFlights _flights
    cdef CFlight _flight
    cdef CFlight _around
    cdef object _loop
    cdef object _result
    cdef object _timeout_s
    cdef object _timer
    cdef object _wakeup
    cdef object _context
    cdef object key
    cdef tuple work
    cdef object owner

    cpdef result(self)
    cpdef bint cancel(self, msg=*) except *
    @cython.locals(flights=LoopFlights, around=CFlight, flight=CFlight, leads=bint)
    cdef _join(self)
    @cython.locals(flight=CFlight, has_value=bint, abandoned=bint)
    cdef _leave_flight(self)
    cdef void _set_outcome(self, int state, object result) noexcept
    cdef _wake(self, bint soon)

@cython.final
cdef class LoopFlights:
    cdef readonly CFlightTable table
    cdef readonly object loop
    cdef readonly dict _owners
    cdef object _now

    cdef _begin(self, CFlight flight, tuple work, object owner, object context)
    @cython.locals(caller=Caller)
    cdef _succeed(self, CFlight flight, object value)
    @cython.locals(caller=Caller, leader=Caller)
    cdef _fail(self, CFlight flight, BaseException error, bint final=*)

cpdef bint _waits(Caller caller) noexcept
@cython.locals(caller=Caller)
cdef _wake(list callers)
