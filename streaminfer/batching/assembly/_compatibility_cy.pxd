cimport cython

@cython.locals(stackable=list)
cpdef list take_stackable(list tickets, Py_ssize_t limit)

cpdef object kind_of(object row)

cdef class RaggedCompatibility:
    cdef readonly Py_ssize_t axis
    cdef readonly tuple lengths
    cdef readonly object names

    @cython.locals(bucket=Py_ssize_t, ndim=Py_ssize_t, shape=tuple)
    cpdef Py_ssize_t bucket_of(self, object inputs)

    @cython.locals(chosen=list, bucket=Py_ssize_t, own=Py_ssize_t)
    cpdef list choose(self, list tickets, Py_ssize_t limit, bint shorter_too)

    cpdef object kind_of(self, object row)

    @cython.locals(shape=tuple, ndim=Py_ssize_t, axis=Py_ssize_t)
    cdef object _kind_of(self, object name, object value)
