cimport cython
from streaminfer.caching._keys_cy cimport KeyMaker as CKeyMaker
from streaminfer.caching.table._table_cy cimport EdgeTable as CTable

cdef extern from *:
    """
    /* What time.monotonic_ns returns, without a Python call. */
    #if PY_VERSION_HEX >= 0x030D0000
    static CYTHON_INLINE long long streaminfer_monotonic_ns(void) {
        PyTime_t now = 0;
        (void)PyTime_MonotonicRaw(&now);
        return (long long)now;
    }
    #else
    static CYTHON_INLINE long long streaminfer_monotonic_ns(void) {
        return (long long)_PyTime_GetMonotonicClock();
    }
    #endif
    """
    # cpdef: the assignment of the same name in the source then makes a Python variable, and calls stay in C
    cpdef long long monotonic_ns "streaminfer_monotonic_ns"() noexcept

cdef int _FRESH

@cython.final
cdef class Miss:
    cdef readonly object key
    cdef readonly int state
    cdef readonly object value
    cdef readonly long long now_ns

@cython.final
cdef class HitPath:
    cdef CTable _table
    cdef CKeyMaker _maker

    cpdef object key(self, object inputs, object tenant=*)
    cpdef object look(self, object inputs, object tenant=*)
    @cython.locals(now_ns=cython.longlong, found=tuple)
    cpdef object find(self, object key)
    cdef long long _now(self) except *

cpdef object copy_out(object value)
@cython.locals(items=list, position=Py_ssize_t)
cdef object _copy_out_other(object value, object kind)
