"""The request, its response, and a batch of requests: what services, primitives and backends exchange."""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, ClassVar, TypedDict

from streaminfer._internal.units import NEVER_NS
from streaminfer._internal.validation import check_duration
from streaminfer._request_cy import Request, Response, Timings, check_priority
from streaminfer.errors import InvalidInput

__all__ = [
    "NEVER_NS",
    "Batch",
    "CallSettings",
    "MapOptions",
    "MapSettings",
    "Request",
    "Response",
    "Timings",
    "check_priority",
    "deadline_after",
    "passed_on_arrival",
    "time_left_s",
    "timeout_ns",
]

_LONGEST_S = 2**62 / 1e9
_DOUBTFUL_S = 60.0  # a request later than this was probably given a duration instead of an instant


class MapSettings(TypedDict, total=False):
    """Keywords of a call that many requests can share; :meth:`Stack.__call__` describes them."""

    timeout_s: float | None
    priority: int
    stream_id: Hashable
    tenant: str | None
    subject: str | None
    tags: Iterable[str]
    store: bool


class MapOptions(MapSettings, total=False):
    """Keywords of :meth:`Stack.map`, which describes them."""

    concurrency: int | None
    return_exceptions: bool


class CallSettings(MapSettings, total=False):
    """Keywords of a `Stack` call."""

    key: Hashable
    wait: bool


class Batch:
    """Requests that a backend runs together; a batch belongs to one worker at a time.

    Args:
        inputs: one array with the batch axis, a mapping of input name to such arrays, or, from a batcher with
            ``stack=False``, a list of the inputs of each request.
        rows: the requests, in the order of the rows.
        deadline_ns: the latest deadline of the rows; ``None`` if a row has no deadline.

    Attributes:
        is_part: its rows come from a batch that failed; they are sent again to find the rows on which the model fails.
        whole_outputs: names of outputs that the sender keeps whole. A backend that supports this returns a mapping of
            all outputs by name: these in the layout of the model, the others cut into rows. Other backends ignore it.
    """

    __slots__ = ("deadline_ns", "inputs", "rows")

    is_part: ClassVar[bool] = False
    whole_outputs: frozenset[str] = frozenset()
    inputs: Any

    def __init__(self, inputs: Any, rows: Sequence[Request], deadline_ns: int | None = None) -> None:
        self.inputs = inputs
        self.rows = rows
        self.deadline_ns = deadline_ns

    @property
    def size(self) -> int:
        """Number of rows of the inputs: one per request, and more if the batcher padded the batch."""
        return len(self.rows)

    def left(self, now_ns: int) -> Sequence[int]:  # noqa: ARG002 - the batcher's override reads it
        """Return the rows without a caller that waits: it has cancelled, or its deadline has passed."""
        return ()

    def again(self) -> "Batch":
        """Return the batch for another attempt; that of a batcher gets fresh inputs, unmodified by any model."""
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.rows)} rows, deadline_ns={self.deadline_ns})"


def passed_on_arrival(now_ns: int, deadline_ns: int) -> str:
    """Return the message for a request that arrived too late, with a hint if a duration was given as an instant."""
    late_s = (now_ns - deadline_ns) / 1e9
    late = f" {late_s:.6f} s" if late_s >= 0.001 else ""  # below 1 ms the figure says nothing
    message = f"the deadline had passed{late} before arrival"
    if late_s < _DOUBTFUL_S:
        return message
    return f"{message}: deadline_ns is an instant of the stack's clock, time.monotonic_ns() + a duration"


def deadline_after(now_ns: int, timeout_s: Any) -> int:
    """Return the deadline for a caller's timeout.

    Args:
        now_ns: the present instant.
        timeout_s: seconds, ≥ 0; infinity gives :data:`NEVER_NS`.

    Raises:
        InvalidInput: ``timeout_s`` is not such a number.
    """
    if isinstance(timeout_s, float) and timeout_s == math.inf:
        return NEVER_NS
    return now_ns + timeout_ns(timeout_s)


def time_left_s(deadline_ns: int | None, now_ns: int) -> float | None:
    """Return the seconds until a deadline, negative after it; ``None`` without a deadline."""
    return None if deadline_ns is None or deadline_ns == NEVER_NS else (deadline_ns - now_ns) / 1e9


def timeout_ns(timeout_s: Any) -> int:
    """Return a caller's timeout in whole nanoseconds, at most 146 years, so that a deadline fits 64 bits.

    Args:
        timeout_s: seconds, ≥ 0.

    Raises:
        InvalidInput: ``timeout_s`` is not such a number.
    """
    try:
        return round(min(check_duration("timeout_s", timeout_s), _LONGEST_S) * 1e9)
    except (TypeError, ValueError) as error:
        raise InvalidInput(str(error)) from None
