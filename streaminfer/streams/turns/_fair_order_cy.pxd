cimport cython

cdef double _MAX_CREDIT

@cython.final
cdef class Turn:
    cdef public object owner
    cdef double _cost
    cdef double _start
    cdef double _finish
    cdef double _queued_finish
    cdef bint _is_busy
    cdef public long denied
    cdef int _priority
    cdef long long _number
    cdef bint _is_queued

cdef class FairOrder:
    cdef readonly list queued
    cdef double _virtual_time
    cdef long long _number

    cpdef push(self, Turn turn, bint continues=*)
    @cython.locals(turn=Turn)
    cpdef Turn pop(self)
    cpdef charge(self, Turn turn)
    cpdef remove(self, Turn turn)

cdef bint _is_before(Turn one, Turn other) noexcept
