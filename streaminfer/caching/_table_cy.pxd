cimport cython
from streaminfer.caching._eviction_cy cimport EvictionOrder as COrder
from streaminfer.caching._wheel_cy cimport ExpiryWheel as CWheel

cdef extern from *:
    """
    /* What time.monotonic_ns returns, without a Python call. */
    #if defined(__linux__)
    #include <time.h>
    static CYTHON_INLINE long long streaminfer_cache_coarse_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
        return (long long)now.tv_sec * 1000000000LL + now.tv_nsec;
    }
    static CYTHON_INLINE long long streaminfer_cache_monotonic_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (long long)now.tv_sec * 1000000000LL + now.tv_nsec;
    }
    #elif PY_VERSION_HEX >= 0x030D0000
    static CYTHON_INLINE long long streaminfer_cache_monotonic_ns(void) {
        PyTime_t now = 0;
        (void)PyTime_MonotonicRaw(&now);
        return (long long)now;
    }
    #else
    static CYTHON_INLINE long long streaminfer_cache_monotonic_ns(void) {
        return (long long)_PyTime_GetMonotonicClock();
    }
    #endif
    #if !defined(__linux__)
    static CYTHON_INLINE long long streaminfer_cache_coarse_ns(void) { return streaminfer_cache_monotonic_ns(); }
    #endif
    static CYTHON_INLINE void streaminfer_cache_untrack(PyObject *held) { PyObject_GC_UnTrack(held); }
    """
    # cpdef: the assignment of the same name in the source then makes a Python variable, and calls stay in C
    cpdef long long monotonic_ns "streaminfer_cache_monotonic_ns"() noexcept
    cpdef long long coarse_ns "streaminfer_cache_coarse_ns"() noexcept
    cpdef void untrack "streaminfer_cache_untrack"(object held) noexcept

cdef long long _NEVER, _NO_LIMIT
cdef int _FIRST, _MAIN, _SMALL, _STALE, _NEGATIVE, _MOST_HITS
cdef unsigned long long _MASK64, _MULTIPLIER
cdef int _IS_MISSING, _IS_FRESH, _IS_STALE, _IS_FAILURE
cdef long long _NEAR_NS, _LOW31, _LOW32, _AT_ONCE, _SMALL_PAYLOAD, _SMALLEST, _EVENTS_KEPT
cdef int _LABELS

# Methods that begin with an underscore are C, but for the two that a subclass overrides. The others are wrapped in a
# lock where compiled code is not atomic by itself, and do not call one another.
# no_gc: cycles through what is cached are not collected, see the source
@cython.no_gc
cdef class EdgeTable:
    cdef readonly long long hits, misses, stale_hits, negative_hits, inserted, replaced, evicted, expired, erased
    cdef readonly long long removed, refused, events_lost, erasures
    cdef public long long wake_ns
    cdef public bint listening, keeping
    cdef long long _maxsize, _max_bytes, _ttl_ns, _stale_ns, _negative_ttl_ns
    cdef bint _s3fifo
    cdef public object clock
    cdef CWheel _wheel
    cdef COrder _order
    cdef list _objects
    cdef list _events
    cdef long long[::1] _hashes
    cdef long long[::1] _index
    cdef long long _mask, _version
    cdef int _shift
    cdef Py_ssize_t _capacity
    cdef int _top, _free

    @cython.locals(slot=int)
    cpdef object get(self, object key, object default=*)

    @cython.locals(slot=int)
    cpdef object peek(self, object key, object default=*)

    @cython.locals(slot=int)
    cpdef object take(self, object key, object default)

    @cython.locals(slot=int)
    cpdef object popitem(self)

    cpdef object clear(self)

    @cython.locals(slot=int, size=cython.longlong)
    cpdef object setdefault(self, object key, object default=*)

    cpdef bint store(self, object key, object value, long long ttl_ns, long long size, object labels) except -1

    @cython.locals(lasts_ns=cython.longlong)
    cpdef bint store_negative(self, object key, object value, long long ttl_ns, object labels) except -1

    @cython.locals(slot=int, queue=int, at_ns=cython.longlong)
    cpdef object lookup(self, object key, long long now_ns)

    cpdef object expire(self)

    @cython.locals(due_ns=cython.longlong)
    cpdef object sweep(self, long long now_ns, long long limit)

    @cython.locals(slot=int, count=cython.longlong)
    cpdef object erase_labelled(self, object subject, object tag)

    @cython.locals(slot=int, queue=int)
    cpdef list snapshot(self, int what)

    @cython.locals(order=COrder)
    cpdef object counters(self)

    cpdef list drain(self)

    cpdef object _tell(self)
    cpdef object _wake(self, long long at_ns)

    @cython.final
    @cython.locals(capacity=Py_ssize_t, bits=int, before=cython.longlong)
    cdef object _build(self)

    @cython.final
    @cython.locals(before=cython.longlong)
    cdef long long _take_over(
        self, CWheel wheel, COrder order, list objects, long long[::1] hashes, long long[::1] index, int bits
    ) except -1

    @cython.final
    cdef long long _read(self) except? -1

    @cython.final
    @cython.locals(slot=int, at_ns=cython.longlong, now_ns=cython.longlong, mixed=cython.longlong)
    cdef bint _store(
        self, object key, object value, long long ttl_ns, long long size, object labels, bint negative) except -1

    @cython.final
    @cython.locals(queue=int, at_ns=cython.longlong)
    cdef bint _is_value(self, int slot, long long now_ns) noexcept

    @cython.final
    @cython.locals(slot=int, position=cython.longlong)
    cdef int _insert(
        self, object key, object value, long long size, long long mixed, long long at_ns, object labels, bint negative
    ) except -1

    @cython.final
    cdef int _replace(
        self, int slot, object value, long long size, long long mixed, long long at_ns, object labels, bint negative
    ) except -1

    @cython.final
    @cython.locals(position=cython.longlong, hole=cython.longlong, home=cython.longlong, word=cython.longlong)
    cdef void _detach(self, int slot) noexcept

    @cython.final
    cdef int _vacate(self, int slot) except -1
    @cython.final
    cdef object _take(self, int slot)

    @cython.final
    @cython.locals(slot=int, gone=list, several=bint)
    cdef int _make_room(self, long long now_ns) except -1

    @cython.final
    @cython.locals(slot=int, count=cython.longlong)
    cdef long long _sweep(self, long long now_ns, long long limit) except -1

    @cython.final
    cdef long long _settle(self) except -1

    @cython.final
    cdef int _note(self, object kind, object key, object value, object labels) except -1

    @cython.final
    @cython.locals(version=cython.longlong, capacity=Py_ssize_t, bits=int)
    cdef object _grow(self)

    @cython.final
    @cython.locals(place=Py_ssize_t, slot=int, position=cython.longlong)
    cdef object _spread(
        self, long long version, list objects, long long[::1] hashes, long long[::1] index, int bits)

cdef long long _mixed(object key) except -1
cdef long long _payload(object value) except -1
cdef bint _matches(tuple labels, object subject, object tag) except -1
cdef int _index_bits(Py_ssize_t capacity) noexcept

@cython.locals(slot=int, at_ns=cython.longlong, now_ns=cython.longlong, mixed=cython.longlong)
cdef int _find_fresh(EdgeTable table, object key) except -2

@cython.locals(version=cython.longlong, position=cython.longlong, word=cython.longlong, slot=int, same=bint)
cdef int _find(EdgeTable table, object key, long long mixed) except -2

@cython.locals(newest=int, older=int, newer=int)
cdef void _touch(COrder order, int slot) noexcept
