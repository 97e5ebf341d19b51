cimport cython

cpdef check_priority(object priority)

@cython.freelist(128)
cdef class Request:
    cdef object __weakref__
    cdef readonly object inputs
    cdef readonly object deadline_ns
    cdef readonly object priority
    cdef readonly object stream_id
    cdef readonly object tenant
    cdef readonly object subject
    cdef readonly tuple tags
    cdef readonly object key
    cdef readonly object store

    cdef _fill(self, object inputs, object deadline_ns, object priority, object stream_id, object tenant, object subject, object tags, object key, object store)

@cython.freelist(128)
cdef class Timings:
    cdef readonly long long enqueued_ns
    cdef readonly long long started_ns
    cdef readonly long long assembled_ns
    cdef readonly long long inferred_ns
    cdef readonly int batch_size

@cython.freelist(128)
cdef class Response:
    cdef object __weakref__
    cdef readonly object outputs
    cdef readonly bint degraded
    cdef readonly object source
    cdef readonly Timings timings

@cython.locals(request=Request)
cpdef Request make_request(object inputs, object deadline_ns, object priority, object stream_id, object tenant, object subject, object tags, object key, object store)
cpdef Request with_deadline(Request request, object deadline_ns)
@cython.locals(response=Response)
cpdef Response make_response(object outputs, object source, Timings timings)
