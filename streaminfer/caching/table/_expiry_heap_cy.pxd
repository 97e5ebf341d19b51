cimport cython
from streaminfer.caching.table._slots_cy cimport Slots as CSlots

cdef long long NEVER, _IN_HEAP
cdef int _STEPS

# no_gc: numbers only
@cython.final
@cython.no_gc
cdef class ExpiryHeap:
    cdef readonly long long due_ns, popped_ns
    cdef CSlots _slots
    cdef long long[::1] _instants
    cdef int[::1] _heap
    cdef int[::1] _places
    cdef Py_ssize_t _count
    cdef long long _latest_ns

    @cython.locals(filed=cython.longlong[::1], heap=int[::1], places=int[::1], length=Py_ssize_t)
    cpdef object grow(self, Py_ssize_t capacity)

    cpdef long long at(self, Py_ssize_t slot) noexcept

    @cython.locals(place=Py_ssize_t)
    cpdef void set(self, Py_ssize_t slot, long long at_ns) noexcept

    @cython.locals(slot=Py_ssize_t, at_ns=cython.longlong, step=int)
    cpdef int pop_due(self, long long now_ns) noexcept

    @cython.locals(place=Py_ssize_t, below=Py_ssize_t)
    cdef void _sink(self, Py_ssize_t slot, long long at_ns) noexcept

    cdef void _put(self, Py_ssize_t place, Py_ssize_t slot, long long at_ns) noexcept
