cimport cython

@cython.locals(kind=object)
cpdef bint alike(object first, object other)

@cython.locals(simple=bint)
cpdef bint all_alike(list rows)
