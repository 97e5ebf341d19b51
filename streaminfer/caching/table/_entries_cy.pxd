cimport cython
from streaminfer.caching.table._eviction_cy cimport EvictionOrder as COrder
from streaminfer.caching.table._index_cy cimport KeyIndex as CIndex
from streaminfer.caching.table._slots_cy cimport Slots as CSlots
from streaminfer.caching.table._expiry_heap_cy cimport ExpiryHeap as CHeap

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
    """
    # cpdef, so that the assignment to this name in the source makes a Python variable while calls stay in C
    cpdef long long monotonic_ns "streaminfer_cache_monotonic_ns"() noexcept
    cpdef long long coarse_ns "streaminfer_cache_coarse_ns"() noexcept

cdef long long NEVER, _NO_LIMIT, _EXPIRIES_PER_STORE, _STEPS, _NEAR_NS, _LONG_NS, _MAX_EVENTS, _MAX_DELETIONS
cdef int FIRST, SMALL, STALE, NEGATIVE, _SMALLEST, _SMALL_TABLE, _LARGE_TABLE

# Methods with a leading underscore are C methods, except `_deliver_events`, which a subclass overrides like `wake`.
# no_gc: cycles through cached objects are not collected, see _index_cy
@cython.no_gc
cdef class Entries:
    cdef readonly long long hits, misses, stale_hits, negative_hits, inserted, replaced, evicted, expired, erased
    cdef readonly long long removed, rejected, events_lost, erasures
    cdef public long long wake_ns, revalidate_ns
    cdef public bint listening, keeping, preserving
    cdef long long _maxsize, _max_bytes, _ttl_ns, _stale_ns
    cdef object _policy
    cdef public object clock
    cdef CIndex _index
    cdef CSlots _slots
    cdef CHeap _expiries
    cdef COrder _order
    cdef list _events
    cdef long long _all_erased
    cdef dict _deletions

    cpdef object _deliver_events(self)
    cpdef object wake(self)

    @cython.final
    @cython.locals(slots=CSlots, expiries=CHeap, order=COrder)
    cdef object _begin(self)

    @cython.final
    @cython.locals(slot=Py_ssize_t, at_ns=cython.longlong, now_ns=cython.longlong, hashed=Py_ssize_t)
    cdef int _find_fresh(self, object key) except -2

    @cython.final
    cdef long long _read(self) except? -1

    @cython.final
    @cython.locals(now_ns=cython.longlong)
    cdef long long _read_for(self, long long ttl_ns) except? -1

    @cython.final
    @cython.locals(slot=Py_ssize_t, at_ns=cython.longlong, now_ns=cython.longlong, hashed=Py_ssize_t)
    cdef bint _store(
        self, object key, object value, long long ttl_ns, long long size, object labels, bint negative,
        long long erasures) except -1

    @cython.final
    @cython.locals(queue=int, at_ns=cython.longlong)
    cdef bint _is_value(self, Py_ssize_t slot, long long now_ns) noexcept

    @cython.final
    cdef void _requeue(self, Py_ssize_t slot, long long size, bint negative) noexcept

    @cython.final
    cdef int _drop(self, Py_ssize_t slot) except -1

    @cython.final
    cdef int _remove(self, Py_ssize_t slot, object kind, list freed) except -1
    cdef object _take(self, Py_ssize_t slot, object kind)

    @cython.final
    cdef int _deleted(self, object target) except -1

    @cython.final
    @cython.locals(latest=cython.longlong, tags=tuple)
    cdef long long _edition(self, object hashed, tuple labels) except -1

    @cython.final
    @cython.locals(slot=Py_ssize_t, freed=list, several=bint)
    cdef int _make_room(self, long long now_ns) except -1

    @cython.final
    @cython.locals(slot=Py_ssize_t, count=cython.longlong)
    cdef long long _expire(self, long long now_ns, long long limit) except -1

    @cython.final
    cdef long long _settle(self) except -1

    @cython.final
    cdef int _note(self, object kind, object key, object value, object labels) except -1

    @cython.final
    @cython.locals(previous=Py_ssize_t, capacity=Py_ssize_t, expiries=CHeap, order=COrder, version=cython.longlong)
    cdef object _grow(self)
