cimport cython
from streaminfer.streams.state._step_cy cimport Block, Places, Step, Stream, WriteBack

cdef Py_ssize_t _SPARE_SLOTS

cdef class StreamTable:
    cdef readonly Py_ssize_t max_streams
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t expired
    cdef readonly Py_ssize_t rejected
    cdef readonly Py_ssize_t imported
    cdef object _streams
    cdef list _blocks
    cdef list _free
    cdef Py_ssize_t _next_slot

    @cython.locals(group=list, step=Step, stream=Stream, target=Step, previous=Step, position=Py_ssize_t)
    cpdef list begin(self, object requests, long long now_ns)

    @cython.locals(versions=list, first=Stream, block=Block, row=Py_ssize_t, is_same=bint, stream=Stream)
    cpdef Block locate(self, Step step)

    @cython.locals(places=Places, sources=dict, source=tuple, row=Py_ssize_t, stream=Stream, block=Block)
    cpdef Places places(self, list streams)

    @cython.locals(owners=list, versions=list, row=Py_ssize_t, stream=Stream)
    cpdef commit(self, Step step, Block block, object failed=*)

    @cython.locals(ready=list, ending=list, current=Step, stream=Stream, dependent=Step)
    cpdef list end(self, Step step)

    @cython.locals(block=Block, work=WriteBack, row=Py_ssize_t, stream=Stream)
    cpdef WriteBack begin_write_back(self, Py_ssize_t keep)

    @cython.locals(stream=Stream, row=Py_ssize_t, slot=Py_ssize_t)
    cpdef end_write_back(self, WriteBack work, bint copied)

    @cython.locals(stream=Stream)
    cpdef reset(self, object stream_id)

    @cython.locals(stream=Stream)
    cpdef drop(self, object stream_id)

    @cython.locals(stream=Stream)
    cpdef bint put(self, object stream_id, object state, long long now_ns) except -1

    cpdef clear(self)

    cpdef restart(self)

    @cython.locals(stream=Stream)
    cpdef long long expire(self, long long before_ns, long long now_ns) except -2

    cdef _remove(self, Stream stream)

    cdef _discard_state(self, Stream stream)

    @cython.locals(block=Block)
    cdef _free_location(self, Stream stream, Step reader)

    cdef Py_ssize_t _take_slot(self) except -1
