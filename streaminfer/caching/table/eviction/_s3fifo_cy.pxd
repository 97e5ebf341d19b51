cimport cython
from streaminfer.caching.table._eviction_cy cimport EvictionOrder

cdef extern from *:
    """
    static CYTHON_INLINE void streaminfer_s3fifo_fetch(long long address) {
    #if defined(__GNUC__) || defined(__clang__)
        __builtin_prefetch((const void *)(size_t)address, 1);
    #else
        (void)address;
    #endif
    }
    """
    # cpdef, so that the assignment to this name in the source makes a Python variable while calls stay in C
    cpdef void fetch "streaminfer_s3fifo_fetch"(long long address) noexcept

cdef int MAIN, SMALL, STALE, NEGATIVE
cdef long long _HIT, _HITS, _MAX_HITS, _PROMOTION_HITS
cdef int _SMALL_SHARE, _SMALL_LEAST, _SMALL_MOST, _YOUNG_SHARE, _REFILL_BITS, _WAYS
cdef unsigned long long _FROM_MAIN, _LOW31
cdef long long _NO_LIMIT

# no_gc: numbers only
@cython.no_gc
cdef class Policy(EvictionOrder):
    cdef bint _full
    cdef long long _address
    cdef long long _small_count, _small_bytes
    cdef unsigned long long[::1] _ghosts
    cdef unsigned long long _rows, _evicted_from_small, _evicted_from_main

    cpdef object grow(self, Py_ssize_t capacity)

    @cython.locals(old=cython.ulonglong[::1], place=Py_ssize_t)
    cdef void _move(self, unsigned long long[::1] ghosts, long long address)

    cpdef void add(self, Py_ssize_t slot, long long size) noexcept
    cpdef void touch(self, Py_ssize_t slot) noexcept
    cpdef int predicted_victim(self) noexcept
    cpdef void prefetch(self, Py_ssize_t slot) noexcept

    @cython.locals(slot=Py_ssize_t, oldest=Py_ssize_t, over=bint, hits=cython.longlong)
    cdef int _next(self) noexcept

    @cython.locals(
        count_room=cython.longlong, bytes_room=cython.longlong, count_left=cython.longlong, bytes_left=cython.longlong)
    cdef bint _fills_main(self) noexcept

    @cython.locals(ghost=cython.ulonglong, queue=int)
    cpdef void evicted(self, Py_ssize_t slot) noexcept

    @cython.locals(
        fingerprint=cython.ulonglong, row=Py_ssize_t, place=Py_ssize_t, ghost=cython.ulonglong, age=cython.longlong)
    cdef bint _pop_ghost(self, unsigned long long mixed) noexcept

    @cython.locals(evicted=cython.ulonglong)
    cdef long long _age(self, unsigned long long ghost) noexcept

    cdef void _move_border(self, int entries) noexcept

    @cython.locals(
        row=Py_ssize_t, place=Py_ssize_t, chosen=Py_ssize_t, existing=cython.ulonglong, remaining=cython.longlong,
        least=cython.longlong, young=cython.longlong)
    cdef void _add_ghost(self, unsigned long long ghost) noexcept

cdef long long _between(long long least, long long number, long long most) noexcept
cdef Py_ssize_t _ghost_rows(Py_ssize_t capacity) noexcept
