cdef class Step

cdef class Block:
    cdef readonly object arrays
    cdef readonly Py_ssize_t size
    cdef readonly object lengths
    cdef readonly Py_ssize_t live
    cdef readonly list streams

cdef class Stream:
    cdef readonly object stream_id
    cdef readonly Block block
    cdef readonly Py_ssize_t row
    cdef readonly Py_ssize_t slot
    cdef readonly object imported
    cdef readonly object lengths
    cdef readonly long long seen_ns
    cdef readonly long long version
    cdef bint _alive
    cdef Step _tail

cdef class Step:
    cdef readonly list streams
    cdef readonly list rows
    cdef readonly Py_ssize_t pending
    cdef public object waiter
    cdef readonly bint ended
    cdef readonly bint abandoned
    cdef list _group
    cdef Py_ssize_t _repetition
    cdef list _dependents
    cdef Step _latest_dependent
    cdef list _slots_to_free
    cdef list _versions

cdef class WriteBack:
    cdef readonly Block block
    cdef readonly list rows
    cdef readonly list slots

cdef class Places:
    cdef readonly list sources
    cdef readonly list others
    cdef readonly list lengths
