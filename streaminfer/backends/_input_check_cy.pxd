cimport cython

@cython.final
cdef class InputCheck:
    cdef readonly object name
    cdef readonly object dtype
    cdef readonly tuple shape
    cdef readonly object text_fits
    cdef readonly bint finite
    cdef Py_ssize_t _rank
    cdef tuple _fixed
    cdef tuple _exact

    @cython.locals(shape=tuple)
    cpdef bint fits(self, object value) except -1

    cdef bint _fits_shape(self, tuple shape) except -1

@cython.locals(check=InputCheck)
cpdef bint inputs_fit(tuple checks, InputCheck only, object inputs) except -1

@cython.final
cdef class RequestCheck:
    cdef tuple _checks
    cdef InputCheck _only
    cdef object _explain

    cpdef check(self, object request)
