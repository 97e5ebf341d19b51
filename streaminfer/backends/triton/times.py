"""What a server says about its own time: how long requests waited there, and how long they were computed.

An answer carries no times, so they are read from the model's counters, which only grow: a mean over some time is the
difference of two readings, nanoseconds over requests. The counters are those of *all* clients of the model. A counter
that shrank means that the server or the model was started anew; what it says since then is added to what was known.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from streaminfer._snapshot import Snapshot
from streaminfer.backends._statistics import BackendStatistics

__all__ = ["CounterReader", "ServerTimes", "TritonStatistics"]

_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


@attrs.frozen(kw_only=True)
class ServerTimes(Snapshot):
    """Means over the requests that a model of a server answered, whoever asked.

    Attributes:
        requests: answered.
        failures: requests that ended with an error there.
        rows: in the answered requests, those of answers from the server's cache left out.
        executions: runs of the model; fewer than requests where the server puts some together.
        queue_s: mean seconds that a request waited in the server.
        input_s: mean seconds until its inputs were where the model reads.
        infer_s: mean seconds in the model.
        output_s: mean seconds until its outputs were where they are sent from.
    """

    requests: int
    failures: int
    rows: int
    executions: int
    queue_s: float
    input_s: float
    infer_s: float
    output_s: float

    @property
    def compute_s(self) -> float:
        """Mean seconds of work on a request: input, model and output."""
        return self.input_s + self.infer_s + self.output_s


@attrs.frozen(kw_only=True)
class TritonStatistics(BackendStatistics):
    """What a backend did since it was made, and what its server says about itself.

    Attributes:
        round_trip_s: mean seconds of this backend's calls that were answered, from the request to its answer.
        server: since the backend first read it; ``None``: the server keeps no such statistics, or has not been read.
        recent: the same between the last two readings; ``None`` before the second.
        server_error: why the last reading failed; empty where it did not.
        split_batches: batches that were refused as a whole and asked again in halves.
    """

    round_trip_s: float
    server: ServerTimes | None
    recent: ServerTimes | None
    server_error: str
    split_batches: int

    def parts(self) -> Mapping[str, float]:
        """Mean seconds of a call by where they went: the server's queue, its work, and the way there and back.

        True as far as this backend is the model's only client, since the server's means are those of all; and the
        server counts until a little after the answer was sent. Empty before the first reading.
        """
        if self.server is None or not self.server.requests:
            return {}
        there = self.server.queue_s + self.server.compute_s
        return {
            "server queue": self.server.queue_s,
            "server compute": self.server.compute_s,
            "transport": max(self.round_trip_s - there, 0.0),
        }


@attrs.frozen
class _Reading:
    """The sum of a model's counters: counts and nanoseconds, by name."""

    values: Mapping[str, int]

    def __sub__(self, other: "_Reading") -> "_Reading":
        return _Reading({name: value - other.values[name] for name, value in self.values.items()})

    def __add__(self, other: "_Reading") -> "_Reading":
        return _Reading({name: value + other.values[name] for name, value in self.values.items()})

    @property
    def is_possible(self) -> bool:
        return all(value >= 0 for value in self.values.values())

    def times(self) -> ServerTimes:
        requests = self.values["success"]
        queue, given, infer, taken = (self.values[f"{part}_ns"] / 1e9 / max(requests, 1) for part in _PARTS)
        return ServerTimes(
            requests=requests,
            failures=self.values["fail"],
            rows=self.values["rows"],
            executions=self.values["executions"],
            queue_s=queue,
            input_s=given,
            infer_s=infer,
            output_s=taken,
        )


class CounterReader:
    """Turns readings of counters into means.

    Attributes:
        total: since the first reading; ``None`` before it.
        recent: between the last two; ``None`` before the second.
    """

    def __init__(self) -> None:
        self._last: _Reading | None = None
        self._sum: _Reading | None = None
        self.total: ServerTimes | None = None
        self.recent: ServerTimes | None = None

    def read(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Takes in the counters of a model, by version, as the server gives them.

        Raises:
            KeyError, TypeError, ValueError: they cannot be read; nothing is changed.
        """
        reading = _sum(models)
        if self._last is None or self._sum is None:
            self._sum = reading - reading
        else:
            grown = reading - self._last
            if not grown.is_possible:
                grown = reading
            self._sum += grown
            self.recent = grown.times()
        self._last = reading
        self.total = self._sum.times()


def _sum(models: Sequence[Mapping[str, Any]]) -> _Reading:
    values = dict.fromkeys(("success", "fail", "rows", "executions", *(f"{part}_ns" for part in _PARTS)), 0)
    for model in models:
        counters = model["inference_stats"]
        values["success"] += _number(counters, "success", "count")
        values["fail"] += _number(counters, "fail", "count")
        values["rows"] += int(model.get("inference_count") or 0)
        values["executions"] += int(model.get("execution_count") or 0)
        for part in _PARTS:
            values[f"{part}_ns"] += _number(counters, part, "ns")
    return _Reading(values)


def _number(counters: Mapping[str, Any], name: str, field: str) -> int:
    return int((counters.get(name) or {}).get(field) or 0)  # zeros are left out over gRPC
