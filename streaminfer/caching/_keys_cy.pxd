cimport cython

cdef extern from *:
    """
    /* What struct.pack returns for "<Q", "<q" and "<d", and what bytes + bytes does, without a Python call. */
    static PyObject *streaminfer_length(unsigned long long number) {
        unsigned char bytes[8];
        for (int place = 0; place < 8; place++) bytes[place] = (unsigned char)(number >> 8 * place);
        return PyBytes_FromStringAndSize((char *)bytes, 8);
    }
    static PyObject *streaminfer_signed(long long number) {
        return streaminfer_length((unsigned long long)number);
    }
    static PyObject *streaminfer_double(double number) {
        unsigned long long bits;
        memcpy(&bits, &number, 8);
        return streaminfer_length(bits);
    }
    static PyObject *streaminfer_joined(PyObject *left, PyObject *right) {
        Py_ssize_t first = PyBytes_GET_SIZE(left), second = PyBytes_GET_SIZE(right);
        PyObject *both = PyBytes_FromStringAndSize(NULL, first + second);
        if (both != NULL) {
            memcpy(PyBytes_AS_STRING(both), PyBytes_AS_STRING(left), first);
            memcpy(PyBytes_AS_STRING(both) + first, PyBytes_AS_STRING(right), second);
        }
        return both;
    }
    """
    # cpdef, so that the assignment to this name in the source makes a Python variable while calls stay in C
    cpdef bytes _length "streaminfer_length"(unsigned long long number)
    cpdef bytes _signed "streaminfer_signed"(long long number)
    cpdef bytes _double "streaminfer_double"(double number)
    cpdef bytes _joined "streaminfer_joined"(bytes left, bytes right)

cdef object ndarray
cdef int _MAX_DEPTH
cdef Py_ssize_t _LONG, _MAX_HEADERS

cdef bytes _number(object value)
cdef bytes _text(str text)
cdef bytes _utf8(str text)
cdef bytes _sized(bytes content)

@cython.final
cdef class KeyMaker:
    cdef object _digest
    cdef bytes _prefix
    cdef dict _headers
    cdef tuple _before

    cpdef object key(self, object inputs, object tenant=*)
    @cython.locals(before=tuple)
    cdef object _key_of_one(self, tuple inputs)
    @cython.locals(parts=list)
    cdef object _key_of_all(self, object inputs, object tenant)

    cdef int _encode(self, object value, list parts, int depth) except -1
    cdef int _encode_other(self, object value, list parts, int depth) except -1
    cdef int _encode_subclass_of_plain(self, object value, list parts, int depth) except -1
    cdef int _encode_container(self, object value, list parts, int depth) except -1
    cdef bytes _encoded(self, object value, int depth)
    @cython.locals(size=Py_ssize_t)
    cdef int _encode_bytes(self, bytes tag, object content, list parts) except -1
    cdef int _encode_view(self, object value, list parts, int depth) except -1
    cdef int _encode_object(self, object value, list parts, int depth) except -1
    cdef int _encode_array(self, object array, list parts, int depth) except -1
    cdef bytes _digest_of(self, object array)
    cdef bytes _header(self, object array)
    cdef int _encode_composite(self, object array, list parts, int depth) except -1
    cdef int _encode_subclass(self, object array, list parts, int depth) except -1
