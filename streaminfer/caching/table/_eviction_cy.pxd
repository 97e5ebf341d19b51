cimport cython
from streaminfer.caching.table._slots_cy cimport Slots as CSlots

cdef int MAIN, SMALL, STALE, NEGATIVE, _QUEUES, _NEGATIVE_SHARE, _STALE_SHARE
cdef long long _NO_MARKS

# no_gc: numbers only
@cython.no_gc
cdef class EvictionOrder:
    cdef readonly long long count, bytes
    cdef int _newest
    cdef long long _maxsize, _max_bytes, _negative_count, _negative_bytes, _stale_count, _stale_bytes
    cdef CSlots _slots
    cdef long long[::1] _counts
    cdef long long[::1] _bytes

    cpdef void add(self, Py_ssize_t slot, long long size) noexcept
    cpdef void touch(self, Py_ssize_t slot) noexcept
    cpdef int predicted_victim(self) noexcept
    cdef int _next(self) noexcept
    cpdef void prefetch(self, Py_ssize_t slot) noexcept
    cpdef void evicted(self, Py_ssize_t slot) noexcept
    cpdef object grow(self, Py_ssize_t capacity)

    cpdef void add_negative(self, Py_ssize_t slot, long long size) noexcept

    @cython.locals(queue=Py_ssize_t, size=cython.longlong)
    cpdef void remove(self, Py_ssize_t slot) noexcept

    @cython.locals(more=cython.longlong)
    cpdef void renew(self, Py_ssize_t slot, long long size) noexcept

    @cython.locals(size=cython.longlong)
    cpdef void move(self, Py_ssize_t slot, Py_ssize_t queue) noexcept

    cpdef int victim(self, bint alive) noexcept
    cpdef long long count_in(self, Py_ssize_t queue) noexcept
    cpdef long long bytes_in(self, Py_ssize_t queue) noexcept
    cpdef int newer_than(self, Py_ssize_t slot) noexcept

    @cython.final
    cdef void _enter(self, Py_ssize_t slot, long long size, Py_ssize_t queue) noexcept

    @cython.final
    @cython.locals(newest=Py_ssize_t)
    cdef void _link(self, Py_ssize_t slot, Py_ssize_t queue) noexcept

    @cython.final
    @cython.locals(older=Py_ssize_t, newer=Py_ssize_t)
    cdef void _unlink(self, Py_ssize_t slot) noexcept

    @cython.final
    cdef long long _share_of(self, long long limit, long long share) noexcept
