cimport cython
from streaminfer.caching.table._entries_cy cimport Entries
from streaminfer.caching.table._eviction_cy cimport EvictionOrder as COrder

cdef long long NEVER, NO_LIMIT, _SMALL_PAYLOAD
cdef int FIRST, MAIN, SMALL, STALE, NEGATIVE
cdef object _ABSENT
cdef int _IS_MISSING, _IS_FRESH, _IS_STALE, _IS_FAILURE, _IS_OUTDATED

# Where compiled code is not atomic, a lock is put around each method; the methods do not call one another.
# no_gc: cycles through cached objects are not collected, see _index_cy
@cython.no_gc
cdef class EdgeTable(Entries):
    # called by `TableMapping` in C; where compiled code is not atomic, `TableMapping` takes the lock itself
    @cython.final
    cdef object _get(self, object key, object default)

    @cython.locals(slot=Py_ssize_t)
    cpdef object hit(self, object key, object default)

    @cython.final
    cdef int _has(self, object key) except -1

    @cython.final
    cdef int _set(self, object key, object value) except -1

    @cython.locals(slot=Py_ssize_t)
    cpdef object peek(self, object key, object default=*)

    @cython.locals(slot=Py_ssize_t)
    cpdef object take(self, object key, object default)

    @cython.locals(slot=Py_ssize_t)
    cpdef bint discard(self, object key) except -1

    cpdef object overtake(self, object key)

    cpdef object count_fresh(self)

    @cython.locals(slot=Py_ssize_t)
    cpdef object popitem(self)

    cpdef object clear(self)

    @cython.locals(size=cython.longlong)
    cpdef object setdefault(self, object key, object default=*, long long ttl_ns=*, object labels=*)

    cpdef bint store(
        self, object key, object value, long long ttl_ns, long long size, object labels, long long erasures=*
    ) except -1

    cpdef bint store_negative(
        self, object key, object value, long long ttl_ns, object labels, long long erasures=*
    ) except -1

    @cython.locals(slot=Py_ssize_t, queue=Py_ssize_t, at_ns=cython.longlong)
    cpdef object lookup(self, object key, long long now_ns)

    cpdef object expire(self)

    @cython.locals(due_ns=cython.longlong)
    cpdef object expire_due(self, long long now_ns, long long limit)

    @cython.locals(slot=Py_ssize_t, count=cython.longlong)
    cpdef object erase_labeled(self, object subject, object tag)

    cpdef bint erased_since(self, object key, object labels, long long erasures) except -1

    cpdef long long edition(self, object key, object labels) except -1

    @cython.locals(slot=Py_ssize_t, queue=Py_ssize_t, keys=list, values=list)
    cpdef tuple snapshot(self, bint with_values)

    @cython.locals(slot=Py_ssize_t)
    cpdef list contents(self)

    @cython.locals(order=COrder)
    cpdef object counters(self)

    cpdef list drain(self)

cdef long long _payload(object value) except -1
cdef bint _matches(tuple labels, object subject, object tag) except -1
