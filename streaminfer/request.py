"""The request, its answer, and a batch of requests: what travels between services, primitives and backends."""

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
_DOUBTFUL_S = 60.0  # so late comes no request whose deadline was meant


class MapSettings(TypedDict, total=False):
    """Keywords of a call that may be the same for many requests; :meth:`Stack.__call__` says what they mean."""

    timeout_s: float | None
    priority: int
    stream_id: Hashable
    tenant: str | None
    subject: str | None
    tags: Iterable[str]
    store: bool


class CallSettings(MapSettings, total=False):
    """Keywords of a call of a `Stack`."""

    key: Hashable
    wait: bool


class Batch:
    """Several requests that a backend answers at once; one worker has it at a time.

    Args:
        inputs: one array with the batch axis, a mapping of input name to such arrays, or, from a batcher with
            ``stack=False``, a list of what each request brought.
        rows: the requests, in the order of the rows.
        deadline_ns: the latest deadline of the rows; ``None`` where a row has none.

    Attributes:
        is_part: its rows were in a batch that failed, and are sent again to find out on which of them the model fails.
        whole_outputs: names of outputs that the sender keeps as a whole. A backend that can do so returns a mapping of
            all outputs by name: these in the layout of the model, the others cut into rows. Another one ignores it.
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
        """How many rows the inputs have: as many as there are requests, or more where a batcher filled them up."""
        return len(self.rows)

    def left(self, now_ns: int) -> Sequence[int]:  # noqa: ARG002 - for a batcher's, which knows its callers
        """Return the rows whose callers wait no longer: they have cancelled, or their deadline has passed."""
        return ()

    def again(self) -> "Batch":
        """Return the batch for another attempt: a batcher's has inputs of its own, to which no model has written."""
        return self

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.rows)} rows, deadline_ns={self.deadline_ns})"


def passed_on_arrival(now_ns: int, deadline_ns: int) -> str:
    """The message for a request that came too late; names the mistake where a duration was given as an instant."""
    late_s = (now_ns - deadline_ns) / 1e9
    late = f" {late_s:.6f} s" if late_s >= 0.001 else ""  # a time limit of 0 for what is late says no more
    message = f"the deadline had passed{late} before arrival"
    if late_s < _DOUBTFUL_S:
        return message
    return f"{message}: deadline_ns is an instant of the stack's clock, time.monotonic_ns() + a duration"


def deadline_after(now_ns: int, timeout_s: Any) -> int:
    """Return the instant at which a caller's time limit ends.

    Args:
        now_ns: the present.
        timeout_s: seconds, ≥ 0; infinity: :data:`NEVER_NS`.

    Raises:
        InvalidInput: not such a number.
    """
    if isinstance(timeout_s, float) and timeout_s == math.inf:
        return NEVER_NS
    return now_ns + timeout_ns(timeout_s)


def time_left_s(deadline_ns: int | None, now_ns: int) -> float | None:
    """Return the seconds until a deadline, negative once it has passed; ``None`` where there is none."""
    return None if deadline_ns is None or deadline_ns == NEVER_NS else (deadline_ns - now_ns) / 1e9


def timeout_ns(timeout_s: Any) -> int:
    """A caller's time limit in whole nanoseconds, at most 146 years, so that a deadline fits 64 bits.

    Args:
        timeout_s: seconds, ≥ 0.

    Raises:
        InvalidInput: not such a number.
    """
    try:
        return round(min(check_duration("timeout_s", timeout_s), _LONGEST_S) * 1e9)
    except (TypeError, ValueError) as error:
        raise InvalidInput(str(error)) from None
