cimport cython

cdef Py_ssize_t _FEW

cdef class Turn:
    cdef public object owner
    cdef readonly bint is_queued
    cdef double _cost
    cdef double _finish
    cdef int _priority
    cdef long long _number

cdef class FairOrder:
    cdef list _heap
    cdef double _virtual
    cdef long long _number
    cdef readonly Py_ssize_t count

    @cython.locals(start=double)
    cpdef push(self, Turn turn)
    @cython.locals(entry=tuple, turn=Turn, start=double)
    cpdef Turn pop(self)
    cpdef remove(self, Turn turn)
    @cython.locals(entry=tuple, turn=Turn, kept=list)
    cdef _leave_out_removed(self)
