"""A trace: when requests arrived, how long they had and how urgent they were; recorded from a batcher, or made up.

It is all that `simulate` and `what_if` need to know of the traffic, on a clock of its own that starts at the first
arrival. A file holds it as NumPy arrays, compressed, without pickle: loading one runs no code of its author.
"""

import io
import os
from pathlib import Path
from typing import IO, Any, Self

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.files.whole_file import write_whole
from streaminfer._internal.validation import expected
from streaminfer.simulation.arrivals import arrivals_in_ns, ascending, numbers, priorities_of

__all__ = ["Trace"]

_FORMAT = "streaminfer.trace"
_VERSION = 1
_FIELDS = ("arrivals_s", "limits_s", "priorities")


@attrs.frozen(init=False, eq=False, repr=False)
class Trace:
    """Recorded traffic; immutable, its arrays read-only, safe to share between threads.

    Args:
        arrivals_s: shape (n,), seconds on any clock, ascending (equal ones may follow each other).
        limits_s: shape (n,), how many seconds after its arrival each request is worth an answer, > 0; NaN or ``inf``:
            as long as it takes. ``None``: that for all.
        priorities: shape (n,), whole numbers of 32 bits, a lower one is more urgent. ``None``: all the same.

    Attributes:
        arrivals_s: shape (n,), float64, ascending from 0.
        limits_s: shape (n,), float64, > 0; ``inf`` where there is none.
        priorities: shape (n,), int32.

    Raises:
        TypeError, ValueError: not such arrays.

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
        arrivals = _from_zero(arrivals_s)
        self.__attrs_init__(
            arrivals, _limits(limits_s, arrivals.size), _constant(priorities_of(priorities, arrivals.size))
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds something else, or another version; the message names the file and what is wrong.
        """
        content = Path(path).read_bytes()
        try:
            with _archive(io.BytesIO(content)) as stored:
                return cls(*_read(stored))
        except Exception as error:  # a damaged archive raises a dozen kinds, and none of them means anything else
            raise ValueError(f"{os.fspath(path)}: not a saved Trace: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as a compressed ``.npz``, under this very name, replacing what was there.

        Raises:
            OSError: the file cannot be written.
        """
        arrays = {name: getattr(self, name) for name in _FIELDS}
        file = io.BytesIO()
        np.savez_compressed(file, format=np.array(_FORMAT), version=np.array(_VERSION), **arrays)
        write_whole(path, file.getvalue())

    @property
    def deadlines_s(self) -> NDArray[np.float64]:
        """Shape (n,), float64: the instant by which each request is worth an answer, ``inf`` where there is none."""
        return self.arrivals_s + self.limits_s

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last; 0.0 of an empty trace."""
        return float(self.arrivals_s[-1]) if self.arrivals_s.size else 0.0

    @property
    def rate(self) -> float:
        """Mean arrivals per second; 0.0 below two arrivals, ``inf`` where all came at one instant."""
        gaps = self.arrivals_s.size - 1
        if gaps < 1:
            return 0.0
        return gaps / self.duration_s if self.duration_s else float("inf")

    def __len__(self) -> int:
        return int(self.arrivals_s.size)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.arrivals_s, self.limits_s, self.priorities)  # a copy's arrays are read-only too

    def __repr__(self) -> str:
        limited = self.limits_s[np.isfinite(self.limits_s)]
        limits = "no time limits"
        if limited.size:
            shortest, longest = f"{limited.min():.4g}", f"{limited.max():.4g}"
            limits = f"time limits {shortest if shortest == longest else f'{shortest} to {longest}'} s"
            if limited.size < len(self):
                limits += f" for {limited.size} of them"
        return f"<Trace of {len(self)} arrivals in {self.duration_s:.4g} s, {self.rate:.4g} a second, {limits}>"


def _from_zero(arrivals_s: ArrayLike) -> NDArray[np.float64]:
    instants = ascending(arrivals_s)
    instants = instants - instants[:1]
    arrivals_in_ns(instants)  # checks the duration
    return _constant(instants)


def _limits(limits_s: ArrayLike | None, n: int) -> NDArray[np.float64]:
    if limits_s is None:
        return _constant(np.full(n, np.inf))
    limits = numbers("limits_s", limits_s)
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


def _archive(file: IO[bytes]) -> Any:
    stored = np.load(file, allow_pickle=False)
    if not isinstance(stored, np.lib.npyio.NpzFile):
        raise TypeError("it is one array")
    return stored


def _read(stored: Any) -> list[NDArray[Any]]:
    found = f"{stored['format']} {stored['version']}"
    if found != f"{_FORMAT} {_VERSION}":
        raise ValueError(expected("format", f"{_FORMAT} {_VERSION}", found))
    return [stored[name] for name in _FIELDS]
