cimport cython

cdef Py_ssize_t _WORD
cdef Py_ssize_t _MAX_LOCKED_WORDS

@cython.final
cdef class Rows:
    cdef object _words
    cdef Py_ssize_t _row
    cdef Py_ssize_t _outer
    cdef Py_ssize_t _runs
    cdef Py_ssize_t _run
    cdef const long long[::1] _read
    cdef long long[::1] _written

    @cython.locals(
        count=Py_ssize_t, position=Py_ssize_t, source_word=Py_ssize_t, target_word=Py_ssize_t, _=Py_ssize_t, word=Py_ssize_t,
        read="const long long[::1]", written="long long[::1]")
    cpdef object copy_from(self, Rows source, list source_rows, list rows)
