cimport cython

cdef unsigned long long _MOST

cdef class ProtobufWriter:
    cdef bytearray _buffer

    cpdef varint(self, unsigned int field, unsigned long long value)
    cpdef zigzag(self, unsigned int field, long long value)
    cpdef fixed64(self, unsigned int field, value)
    cpdef float64(self, unsigned int field, double value)
    cpdef text(self, unsigned int field, str value)
    cpdef data(self, unsigned int field, value)
    cpdef message(self, unsigned int field, ProtobufWriter nested)
    cpdef delimited(self, ProtobufWriter message)

    @cython.locals(packed=bytearray)
    cpdef packed_varints(self, unsigned int field, values)

    @cython.locals(packed=bytearray)
    cpdef packed_zigzags(self, unsigned int field, values)

    cpdef packed_float64s(self, unsigned int field, values)

cdef unsigned long long _zigzag(long long value) noexcept

cdef int _append_varint(bytearray buffer, unsigned long long value) except -1
