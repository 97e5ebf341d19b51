cimport cython

@cython.locals(messages=list, number=Py_ssize_t)
cpdef list make_messages(list parts, list headers, int status)
