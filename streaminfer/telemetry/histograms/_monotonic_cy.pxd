cimport cython
from cpython cimport time

cdef class MonotonicClock:
    cdef object __weakref__
    cdef object _clock
    cdef long long _origin_ns
    cdef long long _elapsed_ns

    @cython.locals(elapsed_ns=cython.longlong)
    cpdef tuple _ages(self)

    # -1 always means an exception, because elapsed time is never negative
    @cython.final
    @cython.locals(elapsed_ns=cython.longlong)
    cdef long long _tick(self) except -1

    @cython.final
    cdef long long _read(self) except? -1
