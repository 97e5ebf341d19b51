cimport cython

cdef int _SPAN

@cython.locals(
    low=cython.Py_ssize_t, filled=cython.Py_ssize_t,
    size=cython.Py_ssize_t, finer=cython.Py_ssize_t, last=cython.longlong, below=cython.longlong, between=cython.longlong, total=cython.longlong)
cpdef tuple fill_buckets(
    const long long[::1] totals, Py_ssize_t first, Py_ssize_t end, const int[::1] edges, const int[::1] middles,
    const int[::1] numbers, Py_ssize_t limit, int[::1] indexes, long long[::1] counts)

@cython.locals(bound=cython.Py_ssize_t)
cpdef object fill_bounds(
    const long long[::1] totals, Py_ssize_t first, Py_ssize_t end, const int[::1] edges, long long[::1] cumulative)

cdef Py_ssize_t _size(long long count, long long gap) noexcept
