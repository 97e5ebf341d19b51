cimport cython
# the build finds dependencies only in cimports of this form, not in cimports of a module
from streaminfer._internal._protobuf_cy cimport ProtobufWriter as CProtobufWriter

cdef int _METRIC, _DELTAS, _BOUND_SIZE, _MAX_CLASSIC, _MAX_SPAN, MAX_GAP, _MAX_VARINT, _MAX_NUMBERS

@cython.locals(
    indexes="const int[::1]", cumulative="const long long[::1]", exemplar=bytes, out=cython.p_uchar,
    buffer=bytearray, begin=cython.Py_ssize_t, deltas=cython.Py_ssize_t, needed=cython.Py_ssize_t, size=cython.Py_ssize_t,
    end=cython.Py_ssize_t, length=cython.Py_ssize_t, metric=cython.Py_ssize_t, message=cython.Py_ssize_t)
cpdef object write_histogram(
    CProtobufWriter family, bytes labels, int field, object point, bytes bounds, dict exemplars, bytes created,
    bytearray scratch)

@cython.locals(exemplar=bytes, number=cython.Py_ssize_t, position=cython.Py_ssize_t, length=cython.Py_ssize_t)
cdef Py_ssize_t _put_classic(
    unsigned char* out, Py_ssize_t size, bytes bounds, const long long[::1] cumulative, dict exemplars) except -1

@cython.locals(
    before=cython.longlong, expected=cython.longlong, length=cython.int, offset=cython.longlong, gap=cython.longlong,
    position=cython.Py_ssize_t)
cdef (Py_ssize_t, Py_ssize_t) _put_native(
    unsigned char* out, Py_ssize_t size, Py_ssize_t end, const int[::1] indexes, const long long[::1] counts)

@cython.locals(end=cython.Py_ssize_t)
cdef Py_ssize_t _put_span(unsigned char* out, Py_ssize_t size, long long offset, int length) noexcept

@cython.locals(position=cython.Py_ssize_t)
cdef Py_ssize_t _put_bytes(unsigned char* out, Py_ssize_t size, bytes data) except -1

cdef Py_ssize_t _put_number(unsigned char* out, Py_ssize_t size, int tag, unsigned long long value) noexcept

cdef Py_ssize_t _put_zigzag(unsigned char* out, Py_ssize_t size, long long value) noexcept

cdef Py_ssize_t _put_varint(unsigned char* out, Py_ssize_t size, unsigned long long value) noexcept

cdef int _varint_size(unsigned long long value) noexcept
