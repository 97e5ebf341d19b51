cimport cython

@cython.locals(position=Py_ssize_t, run=Py_ssize_t, here=Py_ssize_t, there=Py_ssize_t, word=Py_ssize_t)
cpdef object copy_small_rows(
    const long long[::1] source, const long long[::1] source_rows, Py_ssize_t source_row, Py_ssize_t source_outer,
    long long[::1] target, const long long[::1] target_rows, Py_ssize_t target_row, Py_ssize_t target_outer,
    Py_ssize_t outer, Py_ssize_t inner)
