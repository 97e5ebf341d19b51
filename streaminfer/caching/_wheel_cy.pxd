cimport cython

cdef long long _NEVER
cdef int _LEVELS, _BUCKETS, _BITS
cdef unsigned long long _ONE

# no_gc: numbers only
@cython.final
@cython.no_gc
cdef class ExpiryWheel:
    cdef readonly long long due_ns, popped_ns
    cdef long long[::1] _at
    cdef int[::1] _links
    cdef int[::1] _heads
    cdef unsigned long long[::1] _bits
    cdef long long _now_ns
    cdef int _opened

    cpdef grow(self, Py_ssize_t capacity)

    @cython.locals(held=Py_ssize_t)
    cdef void _move(self, long long[::1] at, int[::1] links)

    cpdef long long at(self, int slot) noexcept

    cpdef void insert(self, int slot, long long at_ns) noexcept

    @cython.locals(before=int, after=int, bucket=int)
    cpdef void remove(self, int slot) noexcept

    @cython.locals(bucket=int, slot=int, at_ns=cython.longlong)
    cpdef int pop_due(self, long long now_ns) noexcept

    @cython.locals(bucket=int, shift=int, begins_ns=cython.longlong)
    cdef int _open_next(self, long long now_ns) noexcept

    @cython.locals(level=int, bits=cython.ulonglong, bucket=int)
    cdef int _first(self) noexcept

    @cython.locals(differing=cython.longlong, level=int, place=int, bucket=int, head=int)
    cdef void _link(self, int slot, long long at_ns) noexcept
