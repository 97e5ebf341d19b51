"""Times of requests inside a server: queue and computation.

A response carries no times, so they are read from the model's counters, which only grow: a mean over some time is the
difference of two readings, nanoseconds over requests. The counters include *all* clients of the model, with one set for
each version. If a counter shrinks, the server or the model was restarted; the new counter is then added to the earlier
total. When a version is unloaded, the server drops its counters, but the total includes what was read.
"""

import asyncio
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer._runtime.lifecycle import end_tasks, keep_running
from streaminfer.backends.statistics import BackendRecorder, BackendStatistics
from streaminfer.backends.triton.errors import explained
from streaminfer.backends.triton.request_splitter import RequestSplitter
from streaminfer.backends.triton.session import CallCounts
from streaminfer.errors import BackendError, StreamInferError

__all__ = ["CounterReader", "ServerStatistics", "StatisticsReader", "TritonStatistics"]

_PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


@attrs.frozen(kw_only=True)
class ServerStatistics(Snapshot):
    """Means over the completed requests to a model of a server, of all clients.

    Attributes:
        requests: completed requests.
        failures: requests that ended with an error on the server.
        rows: rows of the completed requests, without responses from the server's cache.
        executions: runs of the model; fewer than requests if the server combines some.
        queue_s: mean seconds that a request was queued on the server.
        compute_input_s: mean seconds to prepare the inputs for the model.
        compute_infer_s: mean seconds in the model.
        compute_output_s: mean seconds to prepare the outputs for sending.
    """

    requests: int
    failures: int
    rows: int
    executions: int
    queue_s: float
    compute_input_s: float
    compute_infer_s: float
    compute_output_s: float

    @property
    def compute_s(self) -> float:
        """Mean seconds of work on a request: input, model and output."""
        return self.compute_input_s + self.compute_infer_s + self.compute_output_s


@attrs.frozen(kw_only=True)
class TritonStatistics(BackendStatistics):
    """Counters of a backend, and those of its server.

    Attributes:
        round_trip_s: mean seconds of this backend's completed calls, from the request to its response.
        server: means since the backend first read them; ``None``: the server has no statistics, or was not read yet.
        recent: means between the last two readings; ``None`` before the second.
        server_error: why the last reading failed; empty if it succeeded.
        split_batches: batches that were rejected as a whole and sent again in halves.
    """

    round_trip_s: float
    server: ServerStatistics | None
    recent: ServerStatistics | None
    server_error: str
    split_batches: int

    def parts(self) -> Mapping[str, float]:
        """Return the mean seconds of a call by part: the server's queue, its computation, and the transport.

        Exact only if this backend is the model's only client, because the server's means include all clients; and the
        server counts until shortly after it has sent the response. Empty before the first reading.
        """
        if self.server is None or not self.server.requests:
            return {}
        there = self.server.queue_s + self.server.compute_s
        return {
            "server queue": self.server.queue_s,
            "server compute": self.server.compute_s,
            "transport": max(self.round_trip_s - there, 0.0),
        }


class CounterReader:
    """Turns readings of counters into means.

    Attributes:
        total: means since the first reading; ``None`` before it.
        recent: means between the last two readings; ``None`` before the second.
    """

    def __init__(self) -> None:
        self._last: dict[str, Counter[str]] | None = None
        self._sum: Counter[str] = Counter()
        self.total: ServerStatistics | None = None
        self.recent: ServerStatistics | None = None

    def read(self, models: Sequence[Mapping[str, Any]]) -> None:
        """Add a reading of a model's counters, by version, as the server sends them.

        Raises:
            KeyError, TypeError, ValueError: the counters cannot be read; nothing is changed.
        """
        readings = {str(model.get("version", "")): _reading(model) for model in models}
        if self._last is not None:
            increments: Counter[str] = Counter()
            for version, reading in readings.items():
                increment = reading.copy()
                increment.subtract(self._last.get(version, {}))
                increments.update(reading if min(increment.values()) < 0 else increment)
            self._sum.update(increments)
            self.recent = _means_of(increments)
        self._last = {**(self._last or {}), **readings}
        self.total = _means_of(self._sum)


class StatisticsReader:
    """Reads the counters of a backend's server periodically.

    Args:
        what: the backend, for messages.

    Attributes:
        counts: counters of the backend's own calls.
        counters: the readings.
        error: why the last reading failed; empty if it succeeded.
    """

    def __init__(self, name: str) -> None:
        self.counts = CallCounts()
        self.counters = CounterReader()
        self.error = ""
        self._name = name
        self._reading: asyncio.Task[None] | None = None

    def start(self, splitter: RequestSplitter, every_s: float | None) -> None:
        """Read the statistics every ``every_s`` seconds, if the server has them."""
        if every_s is not None and "statistics" in splitter.session.server.extensions:
            work = functools.partial(self._read_periodically, splitter, every_s)
            self._reading = keep_running(work, f"reading the statistics of {self._name}", "streaminfer")

    async def stop(self) -> None:
        """Stop reading."""
        reading, self._reading = self._reading, None
        if reading is not None:
            await end_tasks([reading])

    def forget(self) -> None:
        """Forget the reading task, whose event loop has ended."""
        self._reading = None

    async def read(self, splitter: RequestSplitter) -> ServerStatistics:
        """Read the server's statistics of the model, of all its versions.

        Raises:
            RuntimeError: the server has no statistics.
            StreamInferError: the server did not respond.
        """
        session = splitter.session
        if "statistics" not in session.server.extensions:
            raise RuntimeError(f"{self._name}: the server has no statistics")
        subject = f"the statistics of {self._name}"
        try:
            with session.calls, explained(f"reading {subject}"):
                models = await session.statistics()
            self.counters.read(models)
        except StreamInferError as error:
            self.error = str(error)
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as unreadable:
            self.error = f"{subject} cannot be read: {unreadable!r}"
            raise BackendError(self.error) from unreadable
        self.error = ""
        assert self.counters.total is not None  # noqa: S101 - there was a reading
        return self.counters.total

    def statistics(self, recorder: BackendRecorder, workers: int) -> TritonStatistics:
        """Return the backend's counters, and the server's as last read."""
        counts = self.counts
        return TritonStatistics(
            **{**attrs.asdict(recorder.snapshot()), "workers": workers},
            round_trip_s=counts.round_trip_ns / 1e9 / max(counts.round_trips, 1),
            server=self.counters.total,
            recent=self.counters.recent,
            server_error=self.error,
            split_batches=counts.split,
        )

    async def _read_periodically(self, splitter: RequestSplitter, every_s: float) -> None:
        while True:
            try:
                await self.read(splitter)
                await splitter.session.check_version()
            except StreamInferError as error:  # the server may respond later; the statistics report the error meanwhile
                self.error = str(error)
            await asyncio.sleep(every_s)


def _reading(model: Mapping[str, Any]) -> Counter[str]:
    """Return the counters of a model: counts, and nanoseconds by part."""
    counters = model["inference_stats"]
    return Counter(
        {
            "success": _number(counters, "success", "count"),
            "fail": _number(counters, "fail", "count"),
            "rows": int(model.get("inference_count") or 0),
            "executions": int(model.get("execution_count") or 0),
            **{part: _number(counters, part, "ns") for part in _PARTS},
        }
    )


def _means_of(counters: Counter[str]) -> ServerStatistics:
    requests = counters["success"]
    return ServerStatistics(
        requests=requests,
        failures=counters["fail"],
        rows=counters["rows"],
        executions=counters["executions"],
        **{f"{part}_s": counters[part] / 1e9 / max(requests, 1) for part in _PARTS},
    )


def _number(counters: Mapping[str, Any], name: str, field: str) -> int:
    return int((counters.get(name) or {}).get(field) or 0)  # gRPC leaves out zeros
