cimport cython
from streaminfer.caching.table._slots_cy cimport Slots as CSlots

cdef long long _NEVER, _FILED
cdef int _LEVELS, _BUCKETS, _BITS, _STEPS
cdef unsigned long long _ONE

# no_gc: numbers only
@cython.final
@cython.no_gc
cdef class ExpiryWheel:
    cdef readonly long long due_ns, popped_ns
    cdef CSlots _slots
    cdef long long[::1] _filed
    cdef int[::1] _links
    cdef int[::1] _heads
    cdef unsigned long long[::1] _bits
    cdef long long _now_ns, _latest_ns
    cdef int _opened

    cpdef object grow(self, Py_ssize_t capacity)

    @cython.locals(held=Py_ssize_t)
    cdef void _move(self, long long[::1] filed, int[::1] links)

    cpdef long long at(self, Py_ssize_t slot) noexcept
    cpdef void set(self, Py_ssize_t slot, long long at_ns) noexcept

    @cython.locals(bucket=int, slot=Py_ssize_t, at_ns=cython.longlong, step=int)
    cpdef int pop_due(self, long long now_ns) noexcept

    @cython.locals(bucket=int, shift=int, begins_ns=cython.longlong)
    cdef int _open_next(self, long long now_ns) noexcept

    @cython.locals(level=int, bits=cython.ulonglong, bucket=int)
    cdef int _first(self) noexcept

    @cython.locals(differing=cython.longlong, level=int, place=int, bucket=int, head=int)
    cdef void _link(self, Py_ssize_t slot, long long at_ns) noexcept

    @cython.locals(before=int, after=int, bucket=int)
    cdef void _unlink(self, Py_ssize_t slot) noexcept
