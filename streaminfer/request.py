"""The request, its answer, and a batch of requests: what travels between services, primitives and backends."""

from collections.abc import Sequence
from typing import Any, ClassVar

from streaminfer._request_cy import Request, Response, Timings, check_priority
from streaminfer._validation import check_duration
from streaminfer.errors import InvalidInput

__all__ = ["Batch", "Request", "Response", "Timings", "check_priority", "passed_on_arrival", "timeout_ns"]

_LONGEST_S = 2**62 / 1e9
_DOUBTFUL_S = 60.0  # so late comes no request whose deadline was meant


class Batch:
    """Several requests that a backend answers at once; one worker has it at a time.

    Args:
        inputs: one array with the batch axis, a mapping of input name to such arrays, or, from a batcher with
            ``stack=False``, a list of what each request brought.
        rows: the requests, in the order of the rows.
        deadline_ns: the latest deadline of the rows; ``None`` where a row has none.

    Attributes:
        is_part: its rows were in a batch that failed, and are sent again to find out on which of them the model fails.
    """

    __slots__ = ("deadline_ns", "inputs", "rows")

    is_part: ClassVar[bool] = False
    inputs: Any

    def __init__(self, inputs: Any, rows: Sequence[Request], deadline_ns: int | None = None) -> None:
        self.inputs = inputs
        self.rows = rows
        self.deadline_ns = deadline_ns

    @property
    def size(self) -> int:
        """How many rows the inputs have: as many as there are requests, or more where a batcher filled them up."""
        return len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.rows)} rows, deadline_ns={self.deadline_ns})"


def passed_on_arrival(now_ns: int, deadline_ns: int) -> str:
    """The message for a request that came too late; names the mistake where a duration was given as an instant."""
    late_s = (now_ns - deadline_ns) / 1e9
    message = f"the deadline had passed {late_s:.6f} s before arrival"
    if late_s < _DOUBTFUL_S:
        return message
    return f"{message}: deadline_ns is an instant of the stack's clock, time.monotonic_ns() + a duration"


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
