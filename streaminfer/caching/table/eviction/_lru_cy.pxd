cimport cython
from streaminfer.caching.table._eviction_cy cimport EvictionOrder

cdef int MAIN

# no_gc: numbers only
@cython.no_gc
cdef class Policy(EvictionOrder):
    cpdef void touch(self, Py_ssize_t slot) noexcept
