cimport cython

cdef Py_ssize_t _MAX_COPIED_BYTES
cdef Py_ssize_t _MAX_JOINED_BYTES

@cython.final
cdef class RowReader:
    cdef list _names
    cdef list _dtypes
    cdef list _shapes
    cdef list _sizes
    cdef bint _takes_one

    @cython.locals(count=Py_ssize_t, position=Py_ssize_t, first=Py_ssize_t, end=Py_ssize_t, by_name=dict)
    cpdef object read(self, object content, Py_ssize_t start, list spans)

@cython.final
cdef class RowReply:
    cdef object _kind
    cdef list _names
    cdef list _pieces
    cdef list _dtypes
    cdef list _shapes
    cdef bint _has_all
    cdef readonly object headers
    cdef readonly Py_ssize_t size

    @cython.locals(count=Py_ssize_t, position=Py_ssize_t, parts=list)
    cpdef object render(self, object outputs)

cpdef list join_parts(list parts, Py_ssize_t size)
