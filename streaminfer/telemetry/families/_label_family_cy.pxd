cimport cython

cdef class LabelFamilyState:
    cdef object _make
    cdef dict _children
    cdef object _other
    cdef readonly Py_ssize_t max_sets
    cdef readonly long long overflowed

    @cython.locals(child=object)
    cpdef object child(self, object values)

    cpdef tuple children(self)

    cpdef clear(self)

    @cython.locals(child=object)
    cdef object _added(self, object values)
