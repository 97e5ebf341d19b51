"""A trace: the arrivals, time limits and priorities of requests, recorded from a batcher or constructed.

It is all that `simulate` and `what_if` need to know of the traffic. Its clock starts at the first arrival. A file holds
it as compressed NumPy arrays, without pickle: loading a file runs no code of its author.
"""

import io
import os
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.files.whole_file import write_whole
from streaminfer._internal.validation import check_path, expected
from streaminfer.simulation.arrivals import arrivals_in_ns, ascending, priorities_of

__all__ = ["Trace"]

_FORMAT = "streaminfer.trace"
_VERSION = 1
_FIELDS = ("arrivals_s", "limits_s", "priorities")


@attrs.frozen(init=False, eq=False, repr=False)
class Trace:
    """Recorded traffic; immutable, its arrays read-only, safe to share between threads.

    Args:
        arrivals_s: shape (n,), seconds on any clock, ascending (several may be equal).
        limits_s: shape (n,), seconds after the arrival for which a response is worth something, > 0; NaN or ``inf``: no
            limit. ``None``: no limit for any.
        priorities: shape (n,), whole numbers of 32 bits, a lower one is more urgent. ``None``: all the same.

    Attributes:
        arrivals_s: shape (n,), float64, ascending from 0.
        limits_s: shape (n,), float64, > 0; ``inf`` without a limit.
        priorities: shape (n,), int32.

    Raises:
        TypeError, ValueError: an argument is not such an array.

    Example:
        >>> trace = Trace([10.0, 10.25, 10.5], limits_s=[0.05, 0.05, float("nan")])
        >>> trace.arrivals_s.tolist(), trace.rate
        ([0.0, 0.25, 0.5], 4.0)
    """

    arrivals_s: NDArray[np.float64]
    limits_s: NDArray[np.float64]
    priorities: NDArray[np.int32]

    def __init__(
        self, arrivals_s: ArrayLike, limits_s: ArrayLike | None = None, priorities: ArrayLike | None = None
    ) -> None:
        instants = ascending(arrivals_s)
        arrivals = _constant(instants - instants[:1])
        arrivals_in_ns(arrivals)  # raises if the trace is too long
        self.__attrs_init__(
            arrivals, _limits(limits_s, arrivals.size), _constant(priorities_of(priorities, arrivals.size))
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that :meth:`save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file has other content or another version; the message names the file and the problem.
        """
        content = check_path("path", path).read_bytes()
        try:
            return cls(*_read(content))
        except Exception as error:  # a damaged archive raises many classes of errors, all with this meaning
            raise ValueError(f"{os.fspath(path)}: not a saved Trace: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as a compressed ``.npz`` file under exactly this name, replacing an existing file.

        Raises:
            OSError: the file cannot be written.
        """
        arrays = {name: getattr(self, name) for name in _FIELDS}
        file = io.BytesIO()
        np.savez_compressed(file, format=np.array(_FORMAT), version=np.array(_VERSION), **arrays)
        write_whole(path, file.getvalue())

    @property
    def deadlines_s(self) -> NDArray[np.float64]:
        """Instant after which a response to each request is worthless, shape (n,), float64; ``inf`` without a limit."""
        return self.arrivals_s + self.limits_s

    @property
    def duration_s(self) -> float:
        """Seconds from the first arrival to the last; 0.0 for an empty trace."""
        return float(self.arrivals_s[-1]) if self.arrivals_s.size else 0.0

    @property
    def rate(self) -> float:
        """Mean arrivals per second; 0.0 below two arrivals, ``inf`` if all arrived at one instant."""
        gaps = self.arrivals_s.size - 1
        if gaps < 1:
            return 0.0
        return gaps / self.duration_s if self.duration_s else float("inf")

    def __len__(self) -> int:
        return int(self.arrivals_s.size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.arrivals_s, self.limits_s, self.priorities)  # so that a copy's arrays are read-only

    def __repr__(self) -> str:
        limited = self.limits_s[np.isfinite(self.limits_s)]
        limits = "no time limits"
        if limited.size:
            shortest, longest = f"{limited.min():.4g}", f"{limited.max():.4g}"
            limits = f"time limits {shortest if shortest == longest else f'{shortest} to {longest}'} s"
            if limited.size < len(self):
                limits += f" for {limited.size} of them"
        return f"<Trace of {len(self)} arrivals in {self.duration_s:.4g} s, {self.rate:.4g} a second, {limits}>"


def _limits(limits_s: ArrayLike | None, n: int) -> NDArray[np.float64]:
    if limits_s is None:
        return _constant(np.full(n, np.inf))
    limits = real_array("limits_s", limits_s)
    if limits.shape != (n,):
        raise ValueError(expected("limits_s", f"one for each of {n} arrivals", limits.shape))
    limits = np.where(np.isnan(limits), np.inf, limits)
    if (limits <= 0).any():
        raise ValueError(expected("limits_s", "seconds > 0, or nan or inf for none", float(limits.min())))
    return _constant(limits)


def _constant(array: NDArray[Any]) -> NDArray[Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


def _read(content: bytes) -> list[NDArray[Any]]:
    stored = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise TypeError("it is one array")
    stored_format = f"{stored['format']} {stored['version']}"
    if stored_format != f"{_FORMAT} {_VERSION}":
        raise ValueError(expected("format", f"{_FORMAT} {_VERSION}", stored_format))
    return [stored[name] for name in _FIELDS]
