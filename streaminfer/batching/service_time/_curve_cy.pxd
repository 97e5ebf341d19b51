cimport cython

cdef extern from "<math.h>":
    # cpdef: the assignment of the same name in the source then makes a Python variable, and calls stay in C
    cpdef double power "pow"(double x, double y) noexcept

cdef double _LONGEST_NS, _NEAR_BEST, _WORTH_GROWING

@cython.locals(
    count=Py_ssize_t, length=Py_ssize_t, size=Py_ssize_t, at=Py_ssize_t, above=double, below=double, above_s=double,
    below_s=double, rise_s=double, on_line_s=double, share_s=double)
cpdef fill_times(tuple sizes, tuple times_s, double slope_s, double[::1] table)

@cython.locals(size=Py_ssize_t, longest=double, time=double, time_ns=double, rounded_ns=cython.longlong)
cpdef fill_whole_ns(const double[::1] table, double unit_ns, long long[::1] rounded)

@cython.locals(
    size=Py_ssize_t, duration=cython.longlong, longest=cython.longlong, stretched=double)
cpdef fill_planned(
    const long long[::1] mean, const long long[::1] upper, double safety, double stretch, long long[::1] planned,
    long long[::1] capped, long long[::1] slow)

@cython.locals(size=Py_ssize_t, best=Py_ssize_t, highest=double, best_worth=double, throughput=double, worth=double)
cpdef best_size(const double[::1] table)

@cython.locals(size=Py_ssize_t, least=double)
cpdef largest_as_good(const double[::1] table, Py_ssize_t best, Py_ssize_t below, Py_ssize_t limit, double tolerance)
