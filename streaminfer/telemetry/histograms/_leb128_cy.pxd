cimport cython

cdef int _LONGEST

@cython.locals(out="unsigned char[::1]", size=Py_ssize_t, index=Py_ssize_t, number=cython.ulonglong)
cpdef bytes write_counts(const long long[::1] gaps, const long long[::1] counts)

@cython.locals(last=Py_ssize_t)
cdef Py_ssize_t _put(unsigned char[::1] out, Py_ssize_t size, unsigned long long coded) except -1

@cython.locals(
    out="long long[::1]", count=Py_ssize_t, coded=cython.ulonglong, position=cython.int, byte=cython.ulonglong)
cpdef object read_numbers(bytes payload)
