cimport cython
from streaminfer.caching._keys_cy cimport KeyMaker as CKeyMaker
from streaminfer.caching.table._table_cy cimport EdgeTable as CTable

cdef int _FRESH
cdef object _ABSENT
cdef object ndarray, _OBJECT_DTYPE, _RECORD_DTYPE

@cython.final
cdef class Miss:
    cdef readonly object key
    cdef readonly int state
    cdef readonly object value
    cdef readonly long long now_ns
    cdef readonly tuple fallback

@cython.final
cdef class HitPath:
    cdef CTable _table
    cdef CKeyMaker _key_maker

    cpdef object key(self, object inputs, object tenant=*)
    cpdef object lookup(self, object inputs)
    @cython.locals(now_ns=cython.longlong, erasures=cython.longlong, state=int)
    cpdef object find(self, object key)

cpdef object copy_out(object value)
cdef object _copy_out_array(object value)
@cython.locals(items=list, position=Py_ssize_t)
cdef object _copy_out_other(object value, object kind)
