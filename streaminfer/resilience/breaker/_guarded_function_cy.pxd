cimport cython
from streaminfer.resilience.breaker._guard_cy cimport BreakerCore

cdef frozenset PLAIN

@cython.final
cdef class GuardedFunction:
    cdef dict __dict__
    cdef object __weakref__
    cdef BreakerCore _core
    cdef object _function
