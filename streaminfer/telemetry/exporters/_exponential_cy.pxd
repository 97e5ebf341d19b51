cimport cython
from streaminfer.telemetry.histograms cimport _histogram_cy

cdef long long _ZERO
cdef int _BITS

@cython.locals(
    shift=cython.int, populated=cython.Py_ssize_t, merged=cython.Py_ssize_t, zeros=cython.longlong,
    total=cython.longlong, native=cython.longlong, latest=cython.longlong, count=cython.longlong,
    group=cython.Py_ssize_t, neighbors=cython.longlong[::1])
cpdef tuple compact(
    long long[::1] sums, Py_ssize_t first, Py_ssize_t last, const int[::1] natives, const int[::1] classics, int limit,
    int[::1] indexes, long long[::1] counts, long long[::1] cumulative)

@cython.locals(merged=cython.Py_ssize_t, position=cython.Py_ssize_t, native=cython.longlong, latest=cython.longlong)
cdef void _merge(int[::1] indexes, long long[::1] counts, Py_ssize_t populated, int shift) noexcept
