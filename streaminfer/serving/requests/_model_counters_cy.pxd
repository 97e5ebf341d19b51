cimport cython
from streaminfer._request_cy cimport Response as CResponse, Timings as CTimings

cdef class ModelCounters:
    cdef double _batches
    cdef long long _failed
    cdef long long _failed_ns
    cdef long long _infer_ns
    cdef long long _input_ns
    cdef long long _last_ns
    cdef long long _output_ns
    cdef long long _queue_ns
    cdef long long _rows
    cdef long long _succeeded
    cdef long long _succeeded_ns
    cdef long long _timed

    cpdef fail(self, long long took_ns)

    @cython.locals(
        timed=cython.longlong, queue_ns=cython.longlong, input_ns=cython.longlong, infer_ns=cython.longlong,
        output_ns=cython.longlong, rows=Py_ssize_t, response=CResponse, timings=CTimings)
    cpdef succeed(self, list responses, long long arrived_ns, long long now_ns)
