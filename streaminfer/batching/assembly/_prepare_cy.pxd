cimport cython

cdef frozenset _SCALARS, _NUMBERS
cdef int _MAX_DEPTH

@cython.locals(kind=object, prepared=dict)
cpdef object prepare(object inputs, object where=*, object name=*, int depth=*)
