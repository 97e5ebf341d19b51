cimport cython
from streaminfer.caching.table._slots_cy cimport Slots as CSlots

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define STREAMINFER_FETCH(address) __builtin_prefetch(address, 1)
    #else
    #define STREAMINFER_FETCH(address) (void)(address)
    #endif
    static CYTHON_INLINE void streaminfer_cache_fetch(long long address) {
        STREAMINFER_FETCH((const void *)(size_t)address);
    }
    static CYTHON_INLINE void streaminfer_cache_fetch_item(PyObject *held, Py_ssize_t place) {
        STREAMINFER_FETCH(((PyListObject *)held)->ob_item + place);
    }
    static CYTHON_INLINE void streaminfer_cache_fetch_object(PyObject *held, Py_ssize_t place) {
        STREAMINFER_FETCH(((PyListObject *)held)->ob_item[place]);
    }
    static CYTHON_INLINE void streaminfer_cache_untrack(PyObject *held) { PyObject_GC_UnTrack(held); }
    """
    # cpdef, so that the assignment to this name in the source makes a Python variable while calls stay in C
    cpdef void fetch "streaminfer_cache_fetch"(long long address) noexcept
    cpdef void fetch_item "streaminfer_cache_fetch_item"(object held, Py_ssize_t place) noexcept
    cpdef void fetch_object "streaminfer_cache_fetch_object"(object held, Py_ssize_t place) noexcept
    cpdef void untrack "streaminfer_cache_untrack"(object held) noexcept

cdef int FIRST, _MAX_BITS
cdef unsigned long long _MASK64, _MULTIPLIER
cdef long long _LOW32, _HIGH48, _HIGH31, _IN_HEAP

# no_gc: cycles through cached objects are not collected, see the source
@cython.final
@cython.no_gc
cdef class KeyIndex:
    cdef readonly CSlots slots
    cdef list objects
    cdef long long[::1] _words
    cdef long long _mask, _address
    cdef readonly long long version
    cdef int _shift, _bits, top, _free

    @cython.locals(words=cython.longlong[::1], bits=int, address=cython.longlong)
    cdef list begin(self, CSlots slots)
    cdef void _settle(self, int bits) noexcept

    @cython.locals(
        version=cython.longlong, position=cython.longlong, word=cython.longlong, slot=Py_ssize_t, same=bint,
        mixed=cython.longlong)
    cdef int find(self, object key, Py_ssize_t hashed) except -2

    cdef void prefetch(self, Py_ssize_t slot) noexcept
    cdef void prefetch_key(self, Py_ssize_t slot) noexcept
    cdef bint is_full(self) noexcept

    @cython.locals(slot=Py_ssize_t, position=cython.longlong, mixed=cython.longlong)
    cdef int insert(self, object key, object value, object labels, Py_ssize_t hashed) except -1

    @cython.locals(position=cython.longlong, gap=cython.longlong, word=cython.longlong)
    cdef void detach(self, int slot) noexcept

    @cython.locals(place=Py_ssize_t)
    cdef int vacate(self, int slot) except -1

    @cython.locals(
        bits=int, more=list, larger=CSlots, words=cython.longlong[::1], address=cython.longlong, place=Py_ssize_t,
        position=cython.longlong, word=cython.longlong)
    cpdef object grow(self, Py_ssize_t capacity, long long version)

cdef long long _mixed(Py_ssize_t hashed) noexcept
cdef int _index_bits(Py_ssize_t capacity) noexcept
