cimport cython
from streaminfer.streams._stream_cy cimport StreamResult

cdef class NextResult

@cython.final
cdef class WakeUps:
    cdef readonly object loop
    cdef object _context
    cdef object _waiters
    cdef bint _is_scheduled
    cdef object _after_waking

    cpdef add(self, NextResult waiter)
    cdef _schedule(self)
    @cython.locals(waiter=NextResult)
    cpdef _wake_all(self)

@cython.final
cdef class Outlet:
    cdef object __weakref__
    cdef object _clock
    cdef object _ready
    cdef NextResult _waiter
    cdef WakeUps _wake_ups
    cdef readonly dict streams

    cpdef announce(self, object stream)
    @cython.locals(waiter=NextResult)
    cpdef wake(self)
    cpdef NextResult get(self, object reader, bint raises)
    @cython.locals(result=StreamResult)
    cpdef StreamResult take(self, bint raises)

@cython.final
@cython.freelist(128)
cdef class NextResult:
    cdef Outlet _outlet
    cdef object _reader
    cdef bint _raises
    cdef bint _is_notified
    cdef object _error
    cdef object _wakeup
    cdef object _context
    cdef public object _asyncio_future_blocking

    cpdef close(self)
    cdef _wake(self)
