cimport cython
from streaminfer._internal cimport _protobuf_cy
# the build looks for what to compile again only in cimports of this form, not in those of a module
from streaminfer._internal._protobuf_cy cimport ProtobufWriter as CProtobufWriter

cdef int _MAX_GAP, _MAX_VARINT

@cython.locals(number=cython.Py_ssize_t, buffer=bytearray, bucket=bytearray)
cpdef object write_classic(CProtobufWriter message, tuple bounds, const long long[::1] cumulative, dict exemplars)

@cython.locals(
    deltas=bytearray, out=cython.p_uchar, size=cython.Py_ssize_t, before=cython.longlong, expected=cython.longlong, length=cython.int, offset=cython.longlong,
    gap=cython.longlong, position=cython.Py_ssize_t)
cpdef object write_native(
    CProtobufWriter message, CProtobufWriter span, const int[::1] indexes, const long long[::1] counts)

cdef int _write_span(CProtobufWriter message, CProtobufWriter span, long long offset, int length) except -1

cdef Py_ssize_t _put_varint(unsigned char* out, Py_ssize_t size, unsigned long long value) noexcept
