cimport cython
# the build looks for what to compile again only in cimports of this form, not in those of a module
from streaminfer._internal._protobuf_cy cimport ProtobufWriter as CProtobufWriter

cdef int _METRIC

@cython.locals(message=CProtobufWriter, metric=CProtobufWriter)
cpdef object write_histogram(
    CProtobufWriter family, bytes labels, unsigned int field, object point, bytes bounds, dict exemplars, bytes created)

cdef int _BOUND_SIZE, _MAX_CLASSIC, _MAX_SPAN, _MAX_GAP, _MAX_VARINT

@cython.locals(
    written=bytearray, exemplar=bytes, out=cython.p_uchar, size=cython.Py_ssize_t, number=cython.Py_ssize_t,
    position=cython.Py_ssize_t)
cdef object _write_classic(CProtobufWriter message, bytes bounds, const long long[::1] cumulative, dict exemplars)

@cython.locals(
    deltas=bytearray, spans=bytearray, out=cython.p_uchar, out_spans=cython.p_uchar, size=cython.Py_ssize_t,
    spans_size=cython.Py_ssize_t, before=cython.longlong, expected=cython.longlong, length=cython.int,
    offset=cython.longlong, gap=cython.longlong, position=cython.Py_ssize_t)
cdef object _write_native(CProtobufWriter message, const int[::1] indexes, const long long[::1] counts)

@cython.locals(end=cython.Py_ssize_t)
cdef Py_ssize_t _put_span(unsigned char* out, Py_ssize_t size, long long offset, int length) noexcept

cdef Py_ssize_t _put_zigzag(unsigned char* out, Py_ssize_t size, long long value) noexcept

cdef Py_ssize_t _put_varint(unsigned char* out, Py_ssize_t size, unsigned long long value) noexcept

cdef int _varint_size(unsigned long long value) noexcept
