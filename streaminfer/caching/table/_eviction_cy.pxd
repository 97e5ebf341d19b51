cimport cython
from streaminfer.caching.table._slots_cy cimport Slots as CSlots

cdef extern from *:
    """
    static CYTHON_INLINE void streaminfer_order_fetch(long long address) {
    #if defined(__GNUC__) || defined(__clang__)
        __builtin_prefetch((const void *)(size_t)address, 1);
    #else
        (void)address;
    #endif
    }
    """
    # cpdef: the assignment of the same name in the source then makes a Python variable, and calls stay in C
    cpdef void fetch "streaminfer_order_fetch"(long long address) noexcept

cdef int _MAIN, _SMALL, _STALE, _NEGATIVE, _QUEUES
cdef long long _HIT, _HITS, _NO_MARKS, _MAX_HITS, _HITS_TO_STAY
cdef int _SMALL_SHARE, _SMALL_LEAST, _SMALL_MOST, _NEGATIVE_SHARE, _YOUNG_SHARE, _REFILL_BITS, _WAYS
cdef unsigned long long _FROM_MAIN, _LOW31
cdef long long _NO_LIMIT

# no_gc: numbers only
@cython.final
@cython.no_gc
cdef class EvictionOrder:
    cdef readonly long long count, bytes
    cdef bint _s3fifo, _full
    cdef int _newest
    cdef long long _address
    cdef long long _maxsize, _max_bytes, _small_count, _small_bytes, _negative_count, _negative_bytes
    cdef CSlots _slots
    cdef long long[::1] _counts
    cdef long long[::1] _bytes
    cdef unsigned long long[::1] _ghosts
    cdef unsigned long long _rows, _evicted_from_small, _evicted_from_main

    cpdef object grow(self, Py_ssize_t capacity)

    @cython.locals(old=cython.ulonglong[::1], place=Py_ssize_t)
    cdef void _move(self, unsigned long long[::1] ghosts, long long address)

    cpdef void add(self, Py_ssize_t slot, long long size) noexcept
    cpdef void add_negative(self, Py_ssize_t slot, long long size) noexcept

    @cython.locals(queue=Py_ssize_t, size=cython.longlong)
    cpdef void remove(self, Py_ssize_t slot) noexcept

    cpdef void touch(self, Py_ssize_t slot) noexcept

    @cython.locals(more=cython.longlong)
    cpdef void renew(self, Py_ssize_t slot, long long size) noexcept

    @cython.locals(size=cython.longlong)
    cpdef void set_aside(self, Py_ssize_t slot) noexcept

    cpdef int victim(self, bint alive) noexcept

    cpdef void foresee(self, Py_ssize_t slot) noexcept
    cpdef int likely_victim(self) noexcept

    @cython.locals(slot=Py_ssize_t, oldest=Py_ssize_t, over=bint, asked=cython.longlong)
    cdef int _victim_of_two(self) noexcept

    @cython.locals(full=bint, hollow=bint, room=cython.longlong)
    cdef bint _fills_main(self) noexcept

    @cython.locals(ghost=cython.ulonglong, queue=int)
    cpdef void evicted(self, Py_ssize_t slot) noexcept
    cpdef long long held(self, Py_ssize_t queue) noexcept
    cpdef long long bytes_in(self, Py_ssize_t queue) noexcept
    cpdef int newer_than(self, Py_ssize_t slot) noexcept

    cdef void _enter(self, Py_ssize_t slot, long long size, Py_ssize_t queue) noexcept

    @cython.locals(queue=Py_ssize_t, size=cython.longlong)
    cdef void _pass_on(self, Py_ssize_t slot) noexcept

    @cython.locals(newest=Py_ssize_t)
    cdef void _link(self, Py_ssize_t slot, Py_ssize_t queue) noexcept

    @cython.locals(older=Py_ssize_t, newer=Py_ssize_t)
    cdef void _unlink(self, Py_ssize_t slot) noexcept

    @cython.locals(
        fingerprint=cython.ulonglong, row=Py_ssize_t, place=Py_ssize_t, ghost=cython.ulonglong, age=cython.longlong)
    cdef bint _remembers(self, unsigned long long mixed) noexcept

    @cython.locals(evicted=cython.ulonglong)
    cdef long long _age(self, unsigned long long ghost) noexcept

    cdef void _move_border(self, int entries) noexcept

    @cython.locals(
        row=Py_ssize_t, place=Py_ssize_t, chosen=Py_ssize_t, held=cython.ulonglong, left=cython.longlong,
        least=cython.longlong, young=cython.longlong)
    cdef void _haunt(self, unsigned long long ghost) noexcept

cdef long long _share_of(long long limit, long long share) noexcept

cdef long long _between(long long least, long long number, long long most) noexcept
cdef Py_ssize_t _ghost_rows(Py_ssize_t capacity) noexcept
