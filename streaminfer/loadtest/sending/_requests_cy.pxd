cdef class DueRequests:
    cdef public object sent_ns
    cdef public object completed_ns
    cdef public dict failures
    cdef public dict pending
    cdef public Py_ssize_t sent
    cdef public bint cancelling
    cdef long long[::1] _due
    cdef long long[::1] _sent_at
    cdef long long[::1] _completed_at
    cdef Py_ssize_t _count
    cdef object _call
    cdef object _begin
    cdef tuple _errors
    cdef dict _first_errors
    cdef object _on_result
    cdef public object clock
    cdef object _end

    cdef int _start(self, Py_ssize_t number, object begin) except -1
    cdef _fail(self, Py_ssize_t number, object error)
    cpdef end(self, Py_ssize_t number, object result, object error)
