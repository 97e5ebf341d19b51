cimport cython

cdef frozenset _SCALARS, _NUMBERS
cdef int _DEEPEST

@cython.locals(kind=object, prepared=dict)
cpdef object prepare(object inputs, object where=*, object name=*, int depth=*)
