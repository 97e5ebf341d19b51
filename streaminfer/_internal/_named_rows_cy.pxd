cimport cython

@cython.locals(rows=list, row=dict, values=list, position=Py_ssize_t)
cpdef list named_rows(object names, object columns, Py_ssize_t count)
