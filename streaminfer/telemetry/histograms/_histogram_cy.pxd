cimport cython

cdef extern from *:
    """
    /* Significant bits of a number >= 0: the one step of a record that C has and Python arithmetic lacks. */
    #if defined(_MSC_VER) && defined(_WIN64)
    #include <intrin.h>
    static CYTHON_INLINE int streaminfer_bit_length(long long value) {
        unsigned long highest;
        return _BitScanReverse64(&highest, (unsigned long long)value) ? (int)highest + 1 : 0;
    }
    #elif defined(__GNUC__) || defined(__clang__)
    static CYTHON_INLINE int streaminfer_bit_length(long long value) {
        return value ? 64 - __builtin_clzll((unsigned long long)value) : 0;
    }
    #else
    static CYTHON_INLINE int streaminfer_bit_length(long long value) {
        unsigned long long rest = (unsigned long long)value;
        int length = 0;
        while (rest) { length++; rest >>= 1; }
        return length;
    }
    #endif
    """
    # cpdef, so that the assignment to this name in the source makes a Python variable, and calls stay in C
    cpdef int bit_length "streaminfer_bit_length"(long long value) noexcept

cdef long long _FAR_NS
cdef double _FAR_NS_FLOAT, _NAN, _JUST_BELOW_ONE

@cython.locals(scaled=cython.double)
cdef long long _nanoseconds(double seconds) noexcept

@cython.locals(value=cython.double)
cdef double _duration(str name, object seconds) except -1.0

@cython.locals(value=cython.double)
cdef double _share(object q) except -1.0

cdef double _real(str name, object number) except? -1.0

cdef class HistogramState:
    cdef readonly long long lowest_ns, highest_ns, capacity_ns
    cdef readonly int significant_digits
    cdef readonly Py_ssize_t counts_length
    cdef readonly long long count, clamped, minimum_ns, maximum_ns
    cdef readonly int unit_magnitude, half_magnitude
    cdef long long _mask
    cdef long long[::1] _counts

    # For compiled callers, which hold the interpreter lock: no Python object, no exception, no look-up of an override
    # (a cpdef method called from C searches every Python subclass for one, from CPython 3.12 on at each call).
    @cython.final
    cdef void count_ns(self, long long nanoseconds) noexcept

    @cython.locals(
        counts=cython.longlong[::1], index=cython.Py_ssize_t, minimum_ns=cython.longlong, maximum_ns=cython.longlong,
        clamped=cython.longlong, nanoseconds=cython.longlong)
    cpdef object record_each(self, const double[::1] seconds)

    @cython.locals(index=cython.Py_ssize_t, total=cython.longlong)
    cpdef object add_counts(
        self, const long long[::1] counts, long long minimum_ns, long long maximum_ns, long long clamped)

    @cython.locals(index=cython.Py_ssize_t)
    cpdef object quantiles_into(self, const double[::1] shares, double[::1] seconds)

    @cython.locals(
        copied=cython.longlong[::1], index=cython.Py_ssize_t, minimum_ns=cython.longlong, maximum_ns=cython.longlong,
        clamped=cython.longlong)
    cpdef tuple snapshot(self)

    @cython.locals(
        counts=cython.longlong[::1], first=cython.Py_ssize_t, index=cython.Py_ssize_t, end=cython.Py_ssize_t, octave_end=cython.Py_ssize_t,
        parts=cython.longlong, total=cython.longlong, before=cython.longlong, count=cython.longlong,
        sum_of_totals=cython.longlong, steps=cython.longlong, lowest_ns=cython.longlong, width_ns=cython.longlong,
        sum_ns=cython.double)
    cpdef tuple cumulate_into(self, long long[::1] totals)

    @cython.locals(index=cython.Py_ssize_t)
    cpdef object reset(self)

cdef void _count(HistogramState state, long long nanoseconds) noexcept

@cython.locals(index=cython.Py_ssize_t, missing=cython.longlong, last=cython.longlong, repeats=cython.longlong)
cdef void _count_corrected(HistogramState state, long long nanoseconds, long long interval_ns) noexcept

@cython.locals(bucket=cython.int)
cdef Py_ssize_t _index(HistogramState state, long long nanoseconds) noexcept

@cython.locals(bucket=cython.int, half=cython.longlong)
cdef long long _lowest_at(HistogramState state, Py_ssize_t index) noexcept

@cython.locals(
    index=cython.Py_ssize_t, rank=cython.longlong, cumulative=cython.longlong, above=cython.longlong, exact=cython.double)
cdef double _quantile(HistogramState state, double share) noexcept

@cython.locals(index=cython.Py_ssize_t, cumulative=cython.longlong)
cdef double _share_within(HistogramState state, long long nanoseconds) noexcept
