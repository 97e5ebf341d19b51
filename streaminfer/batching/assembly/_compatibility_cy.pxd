cimport cython

@cython.locals(kind=object)
cpdef bint are_stackable(object first, object other)

@cython.locals(simple=bint, taken=list)
cpdef list take_stackable(list tickets, Py_ssize_t limit)

cdef class RaggedCompatibility:
    cdef readonly Py_ssize_t axis
    cdef readonly tuple lengths
    cdef readonly object names

    @cython.locals(length=Py_ssize_t, bucket=Py_ssize_t, ndim=Py_ssize_t, shape=tuple)
    cpdef Py_ssize_t bucket_of(self, object inputs)

    @cython.locals(taken=list, bucket=Py_ssize_t, own=Py_ssize_t)
    cpdef list choose(self, list tickets, Py_ssize_t limit, bint shorter_too)

    @cython.locals(shape=tuple, other_shape=tuple, ndim=Py_ssize_t, axis=Py_ssize_t, position=Py_ssize_t)
    cdef bint _are_stackable_arrays(self, object first, object other)

    cdef bint _are_stackable(self, object first, object other)
