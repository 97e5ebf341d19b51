cimport cython
from streaminfer.caching.table._table_cy cimport EdgeTable

cdef object _ABSENT

# no_gc_clear: methods need `_memory` even while the collector frees a cycle that contains the cache
@cython.no_gc_clear
cdef class TableMapping:
    cdef readonly EdgeTable _memory
    cdef bint _has_policy
