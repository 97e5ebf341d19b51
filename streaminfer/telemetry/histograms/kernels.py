"""Counts an array of durations into a histogram's layout, without the interpreter lock.

The idea: the kernel never touches a live histogram. It counts into an array of its own, other threads run and record
meanwhile, and the caller adds the result under the lock; where a value is unsound the array is thrown away and nothing
was recorded. The bucket of a duration is the exponent of its floating-point form, so both twins read it from there.
Rounding to 53 bits may lift a duration to the next power of two, but then the part falls by as much as the bucket
rises: the index is the same.

Complexity: O(n) with 3 to 4 ns a value compiled, 20 to 40 ns by NumPy, which also needs temporary arrays.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXPORTS", "count_durations", "count_durations_numpy", "indexes_of", "warm_up"]

_FAR_NS = 2**62
_FAR_NS_FLOAT = 2.0**62

Counted = tuple[int, int, int, int]

_jit: Callable[..., Any] | None = None
"""Numba's form, where it was loaded because there is no other."""


def count_durations(
    seconds: NDArray[np.float64], counts: NDArray[np.int64], unit_magnitude: int, half_magnitude: int, highest_ns: int
) -> Counted:
    """Count durations without the interpreter lock: by the kernel that was compiled ahead of time.

    Where there is none, NumPy counts them, unless :func:`warm_up` has loaded Numba's form.

    Args:
        seconds: shape (n,), float64, C-contiguous.
        counts: shape (counts_length,), int64, C-contiguous: increased in place.
        unit_magnitude: binary logarithm of the narrowest part's width in nanoseconds.
        half_magnitude: binary logarithm of the parts that each bucket adds.
        highest_ns: longer durations are clamped to it.

    Returns:
        Position of the first NaN or negative duration, where counting stopped, else -1; the shortest and longest in
        nanoseconds (2^62 and -1 where there are none); how many were clamped.
    """
    count = _compiled() or _jit or count_durations_numpy
    position, minimum_ns, maximum_ns, clamped = count(seconds, counts, unit_magnitude, half_magnitude, highest_ns)
    return position, minimum_ns, maximum_ns, clamped


def warm_up() -> None:
    """Load the kernel: the one compiled ahead of time, or else Numba's, which compiles for about a second.

    Numba keeps what it compiled on disk; a process that finds it there loads it. Call it off the event loop.
    """
    global _jit  # noqa: PLW0603 - once per process
    if _compiled() is None and _jit is None:
        _jit = _compiled_by_numba()


def count_durations_numpy(
    seconds: NDArray[np.float64], counts: NDArray[np.int64], unit_magnitude: int, half_magnitude: int, highest_ns: int
) -> Counted:
    """The plain twin of :func:`count_durations`, which tests hold the kernel against."""
    unsound = ~(seconds >= 0.0)
    if unsound.any():
        return int(unsound.argmax()), _FAR_NS, -1, 0
    with np.errstate(over="ignore"):  # infinity is far enough
        scaled = seconds * 1e9
    far = ~(scaled < _FAR_NS_FLOAT)
    nanoseconds = np.where(far, _FAR_NS, (np.where(far, 0.0, scaled) + 0.5).astype(np.int64))
    clamped = int(np.count_nonzero(nanoseconds > highest_ns))
    nanoseconds = np.minimum(nanoseconds, highest_ns)
    counts += np.bincount(indexes_of(nanoseconds, unit_magnitude, half_magnitude), minlength=counts.size)
    if nanoseconds.size == 0:
        return -1, _FAR_NS, -1, 0
    return -1, int(nanoseconds.min()), int(nanoseconds.max()), clamped


def indexes_of(nanoseconds: NDArray[np.int64], unit_magnitude: int, half_magnitude: int) -> NDArray[np.int64]:
    """Where durations that fit the layout are counted.

    Args:
        nanoseconds: any shape, int64.
        unit_magnitude: binary logarithm of the narrowest part's width in nanoseconds.
        half_magnitude: binary logarithm of the parts that each bucket adds.

    Returns:
        Indexes into the counts, same shape, int64.
    """
    mask = ((2 << half_magnitude) - 1) << unit_magnitude
    bit_length = np.frexp((nanoseconds | mask).astype(np.float64))[1].astype(np.int64)
    bucket = bit_length - (unit_magnitude + half_magnitude + 1)
    return (bucket << half_magnitude) + (nanoseconds >> (bucket + unit_magnitude))


@cache
def _compiled() -> Callable[..., Any] | None:
    from streaminfer import _compiled_kernels  # noqa: PLC0415 - reads files and digests: not at the package's import

    compiled = _compiled_kernels.load()
    return None if compiled is None else compiled.checked("count_durations")


@cache
def _compiled_by_numba() -> Callable[..., Any]:
    from streaminfer._internal.loading.numba_jit import compile_exports, jit  # noqa: PLC0415 - imports Numba

    kernel = jit(_count)
    compile_exports({"count_durations": (kernel, EXPORTS["count_durations"][1])})
    return kernel


def _count(
    seconds: NDArray[np.float64], counts: NDArray[np.int64], unit_magnitude: int, half_magnitude: int, highest_ns: int
) -> Counted:
    mask = ((2 << half_magnitude) - 1) << unit_magnitude
    bits = unit_magnitude + half_magnitude + 1
    minimum_ns = _FAR_NS
    maximum_ns = -1
    clamped = 0
    for position in range(seconds.size):
        value = seconds[position]
        if not value >= 0.0:
            return position, minimum_ns, maximum_ns, clamped
        scaled = value * 1e9
        nanoseconds = int(scaled + 0.5) if scaled < _FAR_NS_FLOAT else _FAR_NS
        if nanoseconds > highest_ns:
            nanoseconds = highest_ns
            clamped += 1
        # the exponent field of the floating-point form, less its bias, plus one: the bit length
        exponent = np.float64(nanoseconds | mask).view(np.int64) >> 52
        bucket = exponent - 1022 - bits
        counts[(bucket << half_magnitude) + (nanoseconds >> (bucket + unit_magnitude))] += 1
        minimum_ns = min(minimum_ns, nanoseconds)
        maximum_ns = max(maximum_ns, nanoseconds)
    return -1, minimum_ns, maximum_ns, clamped


EXPORTS = {
    "count_durations": (
        _count,
        "UniTuple(int64, 4)(Array(float64, 1, 'C', readonly=True), int64[::1], int64, int64, int64)",
    )
}
"""The kernel: the name under which it is compiled ahead of time, the function and its signature."""
