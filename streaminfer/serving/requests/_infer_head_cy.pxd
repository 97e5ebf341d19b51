cimport cython
from streaminfer.serving.requests._row_path_cy cimport RowReader, RowReply

@cython.final
cdef class InferHead:
    cdef Py_ssize_t _contents
    cdef bint _keeps_bytes
    cdef readonly bint binary
    cdef readonly object content_size
    cdef readonly object id
    cdef readonly bint is_reusable
    cdef readonly object outputs
    cdef readonly object parameters
    cdef public object rendered
    cdef readonly RowReader row_reader
    cdef public RowReply row_reply
    cdef readonly Py_ssize_t rows
    cdef readonly object settings
    cdef readonly list spans
    cdef readonly bint takes_one
    cdef readonly list tensors

    cpdef list read(self, object content, Py_ssize_t start, list spans)
