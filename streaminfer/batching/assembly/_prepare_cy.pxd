cimport cython

cdef frozenset _SCALARS, _NUMBERS

@cython.locals(kind=object, prepared=dict)
cpdef object prepare(object inputs)
