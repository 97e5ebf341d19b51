cimport cython

cdef int _FIRST
cdef long long _NEVER

# no_gc: numbers only
@cython.final
@cython.no_gc
cdef class Slots:
    cdef readonly Py_ssize_t capacity
    cdef long long[::1] _words
    cdef int[::1] _ints

    @cython.locals(slot=Py_ssize_t, head=Py_ssize_t)
    cdef void _begin(self) noexcept

    @cython.locals(length=Py_ssize_t)
    cdef void _take_over(self, Slots other) noexcept

    cpdef void name(self, Py_ssize_t slot, long long mixed) noexcept
    cpdef int queue_of(self, Py_ssize_t slot) noexcept
