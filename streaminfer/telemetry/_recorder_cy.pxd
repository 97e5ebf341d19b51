cimport cython
from streaminfer._request_cy cimport Response as CResponse, Timings as CTimings
from streaminfer.telemetry.histograms._histogram_cy cimport HistogramState as CHistogramState

cdef class Recorder:
    cdef CHistogramState _latency
    cdef CHistogramState _queue
    cdef CHistogramState _assembly
    cdef CHistogramState _inference
    cdef CHistogramState _delivery
    cdef readonly Py_ssize_t started
    cdef readonly Py_ssize_t degraded
    cdef readonly dict errors
    cdef readonly dict batch_sizes

    cpdef begin(self)
    cpdef fail(self, str reason)
    cpdef tuple responses(self)

    @cython.locals(timings=CTimings)
    cpdef answer(self, CResponse response, long long started_ns, long long now_ns)

    cpdef record(self, long long started_ns, long long now_ns)
