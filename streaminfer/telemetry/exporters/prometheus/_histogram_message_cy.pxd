cimport cython
from streaminfer._internal cimport _protobuf_cy
# the build finds dependencies only in cimports of this form, not in cimports of a module
from streaminfer._internal._protobuf_cy cimport ProtobufWriter as CProtobufWriter

cdef int MAX_GAP, _LONGEST

@cython.locals(message=CProtobufWriter, metric=CProtobufWriter)
cpdef object write_histogram(
    CProtobufWriter family, bytes labels, int field, object point, tuple bounds, dict exemplars, bytes created)

@cython.locals(buffer=bytearray, tail=bytes, number=cython.Py_ssize_t, size=cython.int)
cdef object _write_classic(
    CProtobufWriter message, const long long[::1] cumulative, tuple bounds, dict exemplars)

@cython.locals(
    deltas=bytearray, out="unsigned char[::1]", before=cython.longlong, expected=cython.longlong, length=cython.int,
    offset=cython.longlong, size=cython.Py_ssize_t, gap=cython.longlong, position=cython.Py_ssize_t)
cdef object _write_native(CProtobufWriter message, const int[::1] indexes, const long long[::1] counts)

@cython.locals(span=CProtobufWriter)
cdef object _write_span(CProtobufWriter message, long long offset, int length)

cdef Py_ssize_t _put_varint(unsigned char[::1] out, Py_ssize_t size, unsigned long long value) noexcept

cdef unsigned long long _zigzag(long long value) noexcept
