cimport cython
from streaminfer._request_cy cimport Request as CRequest, Response as CResponse
from streaminfer.telemetry.families._label_family_cy cimport LabelFamilyState as CLabelFamilyState

cdef class CostAccount:
    cdef public long long cost_ns, setup_ns, padding_ns, rows, responses, on_time, degraded, cached

    cpdef respond(self, bint on_time, bint degraded, bint cached)
    cpdef charge(self, long long rows, long long cost_ns, long long setup_ns, long long padding_ns)

cdef class DeviceBill:
    cdef readonly long long bill_ns, finished_ns, padding_ns, idle_ns, in_flight, workers
    cdef long long _openings, _now_ns, _total, _start_totals, _remainder_ns

    cpdef open(self, long long now_ns)
    cpdef close(self, long long now_ns)

    @cython.locals(passed_ns=cython.longlong, slots=cython.longlong, each_ns=cython.longlong, remainder_ns=cython.longlong)
    cpdef advance(self, long long now_ns)

    cpdef long long begin(self, long long now_ns) except? -1

    @cython.locals(charge_ns=cython.longlong)
    cpdef long long end(self, long long start_total, long long now_ns) except? -1

    cpdef pad(self, long long padding_ns)

    @cython.locals(running_ns=cython.longlong)
    cpdef tuple read(self, long long now_ns)

@cython.locals(setup_share=double, padding=double, total=double, setup_ns=cython.longlong)
cdef tuple _common_parts(long long charge_ns, Py_ssize_t rows, object work)

@cython.locals(
    setup_ns=cython.longlong, marginal_ns=cython.longlong,
    padding_ns=cython.longlong, total=double, shares=list, left_ns=cython.longlong, each_ns=cython.longlong,
    leftover_ns=cython.longlong, done=double, assigned_ns=cython.longlong, share_ns=cython.longlong, row=Py_ssize_t,
    upto_ns=cython.longlong)
cpdef tuple split_ns(long long charge_ns, Py_ssize_t rows, object work)

cdef class BatchMeter:
    cdef DeviceBill _bill
    cdef CostAccount _account
    cdef CLabelFamilyState _tenants
    cdef CLabelFamilyState _streams
    cdef Py_ssize_t _device_index
    cdef object _clock

    cpdef begin(self, list requests, long long now_ns)

    @cython.locals(
        start_total=cython.longlong, requests=list, rows=Py_ssize_t, charge_ns=cython.longlong,
        shares=list, padding_ns=cython.longlong, setup_ns=cython.longlong, row=Py_ssize_t, request=CRequest, share_ns=cython.longlong)
    cpdef end(self, tuple token, object work, long long now_ns)

cdef class ResponseLedger:
    cdef CLabelFamilyState _routes
    cdef CLabelFamilyState _tenants
    cdef CLabelFamilyState _streams
    cdef readonly CostAccount total
    cdef readonly long long failed
    cdef public frozenset uncharged

    cpdef fail(self)

    @cython.locals(deadline_ns=object, on_time=bint, cached=bint, degraded=bint, account=CostAccount)
    cpdef respond(self, CRequest request, CResponse response, long long now_ns, bint sees_batches)

@cython.locals(accounts=list)
cdef CostAccount _account(CLabelFamilyState family, object label, Py_ssize_t device_index)
