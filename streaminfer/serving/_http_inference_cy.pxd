cimport cython
from streaminfer.serving._exchanges_cy cimport Exchange, ExchangeWatch
from streaminfer.serving._http_replies_cy cimport make_messages
from streaminfer.serving.requests._infer_head_cy cimport InferHead
from streaminfer.serving.requests._model_requests_cy cimport ModelCall, ModelRequests
from streaminfer.serving.requests._row_path_cy cimport RowReply, join_parts

cdef frozenset _KNOWN_HEADERS
cdef frozenset _SETTING_HEADERS

@cython.final
cdef class HttpInference:
    cdef object _limits
    cdef Py_ssize_t _max_body_bytes
    cdef ExchangeWatch _watch

    @cython.locals(size=Py_ssize_t, start=Py_ssize_t, shared=Py_ssize_t, head=InferHead, rows=list)
    cdef ModelCall _begin(self, Exchange exchange, ModelRequests model, object kind, object body, object head_length, dict headers, long long arrived_ns)
    @cython.locals(head=InferHead, model=ModelRequests, time_left=list, row_reply=RowReply)
    cdef list _reply(self, ModelCall call, object kind)
    cdef object _check_headers(self, dict headers)
    cdef object _too_large(self)

cdef dict _known_headers(object headers)
cdef object _settings(dict headers, InferHead head)
cdef list _time_left(ModelCall call)
