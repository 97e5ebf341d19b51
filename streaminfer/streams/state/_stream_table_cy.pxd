cimport cython

cdef Py_ssize_t _SPARE_SLOTS

cdef class Step

cdef class Block:
    cdef readonly object arrays
    cdef readonly Py_ssize_t size
    cdef readonly Py_ssize_t live
    cdef readonly list streams

cdef class Stream:
    cdef readonly object stream_id
    cdef readonly Block block
    cdef readonly Py_ssize_t row
    cdef readonly Py_ssize_t slot
    cdef readonly object given
    cdef readonly long long seen_ns
    cdef readonly long long version
    cdef bint _alive
    cdef Step _tail
    cdef Stream _previous
    cdef Stream _next

cdef class Step:
    cdef readonly list streams
    cdef readonly list rows
    cdef readonly Py_ssize_t pending
    cdef public object waiter
    cdef readonly bint ended
    cdef readonly bint abandoned
    cdef list _group
    cdef Py_ssize_t _wave
    cdef list _dependents
    cdef Step _latest_dependent
    cdef list _orphans
    cdef list _versions

cdef class WriteBack:
    cdef readonly Block block
    cdef readonly list rows
    cdef readonly list slots
    cdef readonly list streams

cdef class StreamTable:
    cdef readonly Py_ssize_t max_streams
    cdef readonly Py_ssize_t capacity
    cdef readonly Py_ssize_t expired
    cdef readonly Py_ssize_t rejected
    cdef dict _streams
    cdef list _blocks
    cdef list _free
    cdef Py_ssize_t _next_slot
    cdef Stream _head
    cdef Stream _tail

    @cython.locals(group=list, step=Step, stream=Stream, chosen=Step, before=Step, position=Py_ssize_t)
    cpdef list begin(self, object ids, long long now_ns)

    @cython.locals(versions=list, first=Stream, block=Block, row=Py_ssize_t, same=bint, stream=Stream)
    cpdef Block locate(self, Step step)

    @cython.locals(holders=list, versions=list, row=Py_ssize_t, stream=Stream)
    cpdef commit(self, Step step, Block block, object failed=*)

    @cython.locals(ready=list, ending=list, one=Step, stream=Stream, dependent=Step)
    cpdef list end(self, Step step)

    @cython.locals(block=Block, work=WriteBack, row=Py_ssize_t, stream=Stream)
    cpdef WriteBack take_back(self, Py_ssize_t keep)

    @cython.locals(position=Py_ssize_t, stream=Stream, slot=Py_ssize_t)
    cpdef taken_back(self, WriteBack work, bint copied)

    @cython.locals(stream=Stream)
    cpdef bint reset(self, object stream_id) except -1

    @cython.locals(stream=Stream)
    cpdef bint drop(self, object stream_id) except -1

    @cython.locals(stream=Stream)
    cpdef bint put(self, object stream_id, object given, long long now_ns) except -1

    cpdef clear(self)

    cpdef restart(self)

    @cython.locals(stream=Stream)
    cpdef long long expire(self, long long before_ns, long long now_ns) except -2

    cdef _remove(self, Stream stream)

    cdef _void(self, Stream stream)

    @cython.locals(block=Block)
    cdef _leave(self, Stream stream, Step reader)

    @cython.locals(slot=Py_ssize_t)
    cdef Py_ssize_t _take_slot(self) except -1

    cdef void _append(self, Stream stream)

    @cython.locals(before=Stream, after=Stream)
    cdef void _unlink(self, Stream stream)
