cimport cython

cdef double _LONGEST_NS

@cython.locals(
    count=Py_ssize_t, length=Py_ssize_t, size=Py_ssize_t, at=Py_ssize_t, above=double, below=double, above_s=double,
    below_s=double, rise_s=double, going_on_s=double, share_s=double)
cpdef fill_times(tuple sizes, tuple times_s, double slope_s, double[::1] table)

@cython.locals(size=Py_ssize_t, longest=double, time=double, time_ns=double, whole_ns=cython.longlong)
cpdef fill_whole_ns(const double[::1] table, double unit_ns, long long[::1] whole)
