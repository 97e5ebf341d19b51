cimport cython

@cython.final
@cython.freelist(64)
cdef class Exchange:
    cdef object _buffered
    cdef object _listening
    cdef object _make_error
    cdef object _receive
    cdef object _scope
    cdef list _tasks
    cdef ExchangeWatch _watch
    cdef public object body_is_read
    cdef public bint has_begun
    cdef public bint is_answered
    cdef public Py_ssize_t ticks
    cdef readonly object loop

    cpdef cancel(self, object make_error)
    cpdef listen(self)
    cpdef is_read(self)
    cdef object _note(self, object message)

@cython.final
cdef class ExchangeWatch:
    cdef object _body_timeout_s
    cdef dict _open
    cdef object _loop

    cpdef add(self, Exchange exchange, object loop)
    cpdef discard(self, Exchange exchange)
