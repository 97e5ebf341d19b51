cimport cython

@cython.final
cdef class FlightCounts:
    cdef public long long computations
    cdef public long long collapsed
    cdef public long long failures
    cdef public long long leader_changes
    cdef public long long abandoned
    cdef public long long refreshes
    cdef public long long refresh_failures
    cdef public long long not_stored

cdef int _MAX_REFRESHES

cdef class Flight

@cython.final
cdef class Refreshes:
    cdef int _max_running
    cdef dict _pauses
    cdef public int running
    cdef public bint failing

    cpdef bint may_begin(self, object entry, long long now_ns) except *
    cpdef object ended(self, Flight flight, object error)

@cython.final
cdef class Flight:
    cdef public object key
    cdef public object entry
    cdef public dict waiting
    cdef public object leader
    cdef public int failures
    cdef public Refreshes refreshes
    cdef public long long begun_ns
    cdef public bint discards
    cdef public double late_s
    cdef public bint over
    cdef public object computing
    cdef public object tier_wait
    cdef public dict waits_for

@cython.final
cdef class FlightTable:
    cdef FlightCounts _counts
    cdef dict _flights
    cdef set _refreshed
    cdef object _is_waiting

    @cython.locals(flight=Flight)
    cpdef Flight join(self, object key, object caller, Flight inside)
    @cython.locals(remaining=cython.int)
    cpdef bint leave(self, Flight flight, object caller, Flight inside) except *
    @cython.locals(flight=Flight)
    cpdef Flight refresh(self, object key, long long now_ns, Refreshes refreshes, object entry=*)
    cpdef Flight flight(self, object key)
    cpdef list succeed(self, Flight flight)
    cdef _end(self, Flight flight)
    cdef _end_refresh(self, Flight flight)

@cython.locals(seen=set, ahead=list, flight=Flight)
cdef bint _reaches(Flight start, Flight target) except *
