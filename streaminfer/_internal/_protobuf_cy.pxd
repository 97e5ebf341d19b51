cimport cython

cdef unsigned long long _MAX_VARINT

cdef class ProtobufWriter:
    cdef bytearray _buffer

    cpdef varint(self, unsigned int field, unsigned long long value)
    cpdef fixed64(self, unsigned int field, value)
    cpdef float64(self, unsigned int field, double value)
    cpdef text(self, unsigned int field, str value)
    cpdef data(self, unsigned int field, value)
    cpdef message(self, unsigned int field, ProtobufWriter nested)
    cpdef delimited(self, ProtobufWriter message)

cdef int _append_varint(bytearray buffer, unsigned long long value) except -1

cdef int _VARINT
cdef int _FIXED64
cdef int _LENGTH
cdef int _FIXED32

cdef class _FieldReader:
    cdef const unsigned char[::1] _view
    cdef Py_ssize_t _size
    cdef Py_ssize_t position

    @cython.locals(value=cython.ulonglong, shift=int, byte=cython.ulonglong)
    cdef unsigned long long varint(self) except? 0

    @cython.locals(value=cython.ulonglong, remaining=cython.ulonglong)
    cdef unsigned long long length(self, int kind, Py_ssize_t begin) except? 0

@cython.locals(
    pieces=list, contents=list, reader=_FieldReader, piece=Py_ssize_t, fields=Py_ssize_t, size=Py_ssize_t,
    begin=Py_ssize_t, field_tag=cython.ulonglong, length=Py_ssize_t, end=Py_ssize_t)
cpdef tuple split_fields(view, unsigned long long tag, Py_ssize_t max_fields)
