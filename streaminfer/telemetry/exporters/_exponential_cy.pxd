cimport cython

cdef int _ZERO

@cython.locals(
    shift=cython.int, populated=cython.Py_ssize_t, zeros=cython.longlong, native=cython.int, count=cython.longlong,
    group=cython.Py_ssize_t)
cpdef tuple compact(
    long long[::1] sums, Py_ssize_t first, Py_ssize_t last, const int[::1] natives, const int[::1] classics, int limit,
    int[::1] indexes, long long[::1] counts, long long[::1] cumulative)

@cython.locals(merged=cython.Py_ssize_t, position=cython.Py_ssize_t, native=cython.int)
cdef Py_ssize_t _halve(int[::1] indexes, long long[::1] counts, Py_ssize_t populated) noexcept
