cimport cython

cdef int _ZERO, _MAX_GAP

@cython.locals(
    shift=cython.int, populated=cython.int, zeros=cython.longlong, at=cython.Py_ssize_t, present=cython.int,
    native=cython.int, count=cython.longlong, group=cython.Py_ssize_t, indexes=cython.int[::1], counts=cython.longlong[::1],
    cumulative=cython.longlong[::1])
cpdef tuple compact(
    long long[::1] sums, Py_ssize_t first, Py_ssize_t last, const int[::1] natives, const int[::1] classics, int limit,
    Py_ssize_t bounds)

@cython.locals(
    out=cython.uchar[::1], size=cython.Py_ssize_t, before=cython.longlong, expected=cython.longlong,
    length=cython.int, gap=cython.longlong, position=cython.Py_ssize_t)
cpdef tuple spans_and_deltas(const int[::1] indexes, const long long[::1] counts)

@cython.locals(found=cython.int, present=cython.int, native=cython.int, group=cython.Py_ssize_t)
cdef int _populated(
    long long[::1] sums, Py_ssize_t first, Py_ssize_t last, const int[::1] natives, int shift) noexcept

@cython.locals(rest=cython.ulonglong)
cdef Py_ssize_t _put_zigzag(unsigned char[::1] out, Py_ssize_t size, long long number) noexcept
