cimport cython
from streaminfer._request_cy cimport Request as CRequest, Response as CResponse
from streaminfer.telemetry.families._label_family_cy cimport LabelFamilyState as CLabelFamilyState
from streaminfer.telemetry.histograms._histogram_cy cimport HistogramState as CHistogramState

cdef int _TENANT, _ROUTE

cdef class LabeledCounts:
    cdef readonly CHistogramState latency
    cdef readonly Py_ssize_t degraded
    cdef readonly dict errors

    cpdef tuple responses(self)

cdef class LabeledRecorder:
    cdef list _codes
    cdef CLabelFamilyState _family

    @cython.locals(counts=LabeledCounts)
    cpdef answer(self, CRequest request, CResponse response, long long started_ns, long long now_ns)

    @cython.locals(counts=LabeledCounts)
    cpdef fail(self, CRequest request, str reason)

    @cython.locals(values=list, code=int)
    cdef tuple _values(self, CRequest request, object source)
