cimport cython

@cython.locals(
    at=Py_ssize_t, count=Py_ssize_t, mean=double, total=double, before=double, earlier=double,
    means=list, totals=list, counts=list, curve=list)
cpdef list isotonic_curve(object values, object weights)
