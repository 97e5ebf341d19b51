cimport cython
from streaminfer._request_cy cimport make_request
from streaminfer._stack._chain_cy cimport Chain, Passage
from streaminfer.serving.requests._infer_head_cy cimport InferHead
from streaminfer.serving.requests._model_counters_cy cimport ModelCounters

cdef Py_ssize_t _MAX_HEAD_BYTES
cdef Py_ssize_t _MAX_HEADS
cdef long long _RENEW_INTERVAL_NS

@cython.final
cdef class ModelRequests:
    cdef object _capabilities
    cdef object _output_names
    cdef long long _renew_ns
    cdef readonly object announced
    cdef readonly ModelCounters counters
    cdef readonly dict heads
    cdef readonly object name
    cdef readonly object stack
    cdef readonly object tensors

    cpdef long long now_ns(self)
    cpdef InferHead head(self, object message, Py_ssize_t length, long long now_ns)
    cpdef store_head(self, object message, Py_ssize_t length, InferHead head)
    @cython.locals(call=ModelCall)
    cpdef ModelCall begin(self, InferHead head, list rows, object settings, long long arrived_ns, object loop=*)
    cdef _begin_in_stream(self, ModelCall call, object settings)
    cdef object _deadline_ns_of(self, object timeout_s, long long arrived_ns)
    cdef _renew(self, long long now_ns)
    cdef dict _joined(self, list outputs)

@cython.final
@cython.freelist(128)
cdef class ModelCall:
    cdef long long _arrived_ns
    cdef Chain _chain
    cdef object _deadline_ns
    cdef object _ended_stream
    cdef Passage _passage
    cdef list _responses
    cdef readonly InferHead head
    cdef readonly ModelRequests model
    cdef readonly object awaited
    cdef readonly object arrays
    cdef readonly object time_left_s
    cdef readonly object stream
    cdef readonly object row
    cdef readonly list parts

    @cython.locals(passage=Passage)
    cdef list _failed(self, object error)
    @cython.locals(model=ModelRequests, head=InferHead, responses=list, now_ns=cython.longlong)
    cdef _end(self, object outcome)
    cdef _fail(self, object error)
    cdef _end_stream(self)
