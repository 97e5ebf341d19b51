cimport cython

cdef int _MAIN, _SMALL, _STALE, _NEGATIVE, _QUEUES, _MOST_HITS, _HITS_TO_STAY
cdef int _SMALL_SHARE, _SMALL_LEAST, _SMALL_MOST, _NEGATIVE_SHARE, _YOUNG_SHARE, _REFILL_SHARE, _WAYS
cdef unsigned long long _FROM_MAIN, _LOW31
cdef long long _NO_LIMIT

# no_gc: numbers only
@cython.final
@cython.no_gc
cdef class EvictionOrder:
    cdef readonly long long count, bytes
    cdef bint _s3fifo, _full
    cdef int _newest
    cdef long long _maxsize, _max_bytes, _small_count, _small_bytes, _negative_count, _negative_bytes
    cdef int[::1] _links
    cdef long long[::1] _sizes
    cdef unsigned char[::1] _queues
    cdef unsigned char[::1] _hits
    cdef long long[::1] _counts
    cdef long long[::1] _bytes
    cdef unsigned long long[::1] _ghosts
    cdef unsigned long long _rows, _evicted_from_small, _evicted_from_main

    cpdef grow(self, Py_ssize_t capacity)

    @cython.locals(held=Py_ssize_t, old=cython.ulonglong[::1], place=Py_ssize_t)
    cdef void _move(
        self, int[::1] links, long long[::1] sizes, unsigned char[::1] queues, unsigned char[::1] hits,
        unsigned long long[::1] ghosts)

    cpdef void add(self, int slot, long long size, unsigned long long mixed) noexcept
    cpdef void add_negative(self, int slot, long long size) noexcept

    @cython.locals(queue=int, size=cython.longlong)
    cpdef void remove(self, int slot) noexcept

    cpdef void touch(self, int slot) noexcept

    @cython.locals(more=cython.longlong)
    cpdef void resize(self, int slot, long long size) noexcept

    @cython.locals(size=cython.longlong)
    cpdef void set_aside(self, int slot) noexcept

    cpdef int victim(self, bint alive) noexcept

    @cython.locals(slot=int, oldest=int, over=bint)
    cdef int _victim_of_two(self) noexcept

    @cython.locals(full=bint, hollow=bint, room=cython.longlong)
    cdef bint _fills_main(self) noexcept

    @cython.locals(ghost=cython.ulonglong)
    cpdef void evicted(self, int slot, unsigned long long mixed) noexcept
    cpdef int queue_of(self, int slot) noexcept
    cpdef long long size_of(self, int slot) noexcept
    cpdef long long held(self, int queue) noexcept
    cpdef long long bytes_in(self, int queue) noexcept
    cpdef int newer_than(self, int slot) noexcept

    cdef void _enter(self, int slot, long long size, int queue) noexcept

    @cython.locals(queue=int, size=cython.longlong)
    cdef void _pass_on(self, int slot) noexcept

    @cython.locals(newest=int)
    cdef void _link(self, int slot, int queue) noexcept

    @cython.locals(older=int, newer=int)
    cdef void _unlink(self, int slot) noexcept

    @cython.locals(
        fingerprint=cython.ulonglong, row=Py_ssize_t, place=Py_ssize_t, ghost=cython.ulonglong, age=cython.longlong)
    cdef bint _remembers(self, unsigned long long mixed) noexcept

    @cython.locals(evicted=cython.ulonglong)
    cdef long long _age(self, unsigned long long ghost) noexcept

    cdef void _move_border(self, int entries) noexcept

    @cython.locals(
        row=Py_ssize_t, place=Py_ssize_t, chosen=Py_ssize_t, held=cython.ulonglong, left=cython.longlong,
        least=cython.longlong)
    cdef void _haunt(self, unsigned long long ghost) noexcept

cdef long long _share_of(long long limit, long long share) noexcept

cdef long long _between(long long least, long long number, long long most) noexcept
cdef Py_ssize_t _ghost_rows(Py_ssize_t capacity) noexcept
