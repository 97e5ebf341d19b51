cimport cython
from streaminfer.batching.service_time._isotonic_cy cimport isotonic_curve as c_isotonic_curve

cdef extern from "<math.h>":
    # cpdef: the assignment of the same name in the source then makes a Python variable, and calls stay in C
    cpdef double exp(double x) noexcept
    cpdef double power "pow"(double x, double y) noexcept

cdef double _OFF_LINE, _LINE_VISITS, _PRIOR_WEIGHT, _STEEPEST, _SINGULAR

@cython.locals(
    own=list, costs=list, line=tuple, setup=double, per_row=double, prior_visits=double, count=Py_ssize_t,
    at=Py_ssize_t, cost=double, size=double, below=double, own_visits=double, on_line=double, full=double,
    logarithm=double)
cpdef tuple smoothed_costs(list sizes, list logarithms, list visits, double deviation)

@cython.locals(
    at=Py_ssize_t, size=double, cost=double, weight=double, mean_size=double, mean_cost=double, x=double, y=double,
    xx=double, yy=double, xy=double, x1=double, y1=double, prior=double, determinant=double, setup=double,
    per_row=double)
cdef tuple _line(list sizes, list costs, list weights)
