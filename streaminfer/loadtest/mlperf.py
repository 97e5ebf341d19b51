"""Driver that lets MLPerf LoadGen load a service: LoadGen's *Server* scenario, Poisson arrivals from its own thread.

LoadGen accepts a run if the required share of queries, 99 % by default, completes within the latency limit. LoadGen
knows no errors, so the driver completes a failed request after the latency limit and a second more: it counts as late.
Requests without a response some seconds after the last query are cancelled and completed too.
"""

import asyncio
import contextlib
import functools
import math
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import attrs

from streaminfer._internal.error_log import ErrorLog
from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_count, check_duration_ns, check_number, check_share, expected
from streaminfer.errors import CircuitOpen, Closed, Overloaded
from streaminfer.loadtest.arrivals import check_run_s
from streaminfer.loadtest.runner import DRAIN_S, DRAIN_SLOS
from streaminfer.loadtest.sending.loops import Begin, Call, Receive
from streaminfer.loadtest.sending.requests import Requests, check_sequence, check_service
from streaminfer.loadtest.sending.sender import running
from streaminfer.simulation.arrivals import check_size

__all__ = ["MlperfResult", "run_mlperf"]

_REJECTED_S = 1.0
_REJECTIONS = (CircuitOpen, Closed, Overloaded, TimeoutError, asyncio.CancelledError)
_LONGEST = 10.0
"""Longest run, as a multiple of the duration: then LoadGen stops sending."""
_MOST_SEED = 2**64 - 3
"""LoadGen takes three seeds of 64 bits, from this one on."""


@attrs.frozen
class MlperfResult:
    """Result of LoadGen.

    Attributes:
        valid: whether LoadGen accepts the run.
        p99_s: 99th percentile of the latency that LoadGen measured, seconds.
        summary: text of LoadGen's summary.
    """

    valid: bool
    p99_s: float
    summary: str


async def run_mlperf(
    service: Any, *, inputs: Any, rate: float, slo_s: float, duration_s: float, percentile: float = 0.99, seed: int = 1
) -> MlperfResult:
    """Let MLPerf LoadGen send requests to a service; needs the extra ``loadgen``.

    LoadGen cannot be stopped: if this call is cancelled, it returns only at the end of LoadGen's schedule, but sends
    no more requests to the service.

    Args:
        service: as for `run`.
        inputs: a sequence; LoadGen chooses the input of each request.
        rate: mean requests per second, from 0.001 to 1,000,000.
        slo_s: latency limit in seconds.
        duration_s: shortest duration of the run in seconds.
        percentile: share of requests that must complete within the limit.
        seed: seed of the schedule and the choice of inputs.

    Returns:
        The verdict and the summary of LoadGen.

    Raises:
        MissingExtra: LoadGen is not installed.
        TypeError, ValueError: an argument is wrong.
    """
    loadgen = require("mlperf_loadgen", extra="loadgen", purpose="run_mlperf")
    check_service(service)
    # LoadGen waits for the request after the end of the run, so a lower rate could keep it for years
    rate = check_number("rate", rate, "a number from 0.001 to 1,000,000", lambda it: 1e-3 <= it <= 1e6)
    slo_ns = check_duration_ns("slo_s", slo_s, positive=True)
    duration_s = check_run_s("duration_s", duration_s)
    check_size("rate * duration_s", rate * duration_s)
    percentile = check_share("percentile", percentile)
    seed = check_count("seed", seed, at_most=_MOST_SEED)
    at = check_sequence(inputs, "a sequence of inputs")
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = rate
    settings.server_target_latency_ns = slo_ns
    settings.server_target_latency_percentile = percentile
    settings.min_duration_ms = math.ceil(duration_s * 1e3)  # 0 ends the process
    settings.max_duration_ms = math.ceil(_LONGEST * duration_s * 1e3)
    settings.min_query_count = round(rate * duration_s)
    settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed = seed, seed + 1, seed + 2
    async with running(service) as started:
        with tempfile.TemporaryDirectory() as folder:
            await _Driver(loadgen, Requests(started, at, len(inputs)), len(inputs), slo_ns / 1e9).run(settings, folder)
            return _read(Path(folder) / "mlperf_log_summary.txt")


class _Driver:
    """Takes queries from LoadGen's thread into the event loop.

    LoadGen cannot be stopped and waits for every query, so the driver completes each query, whatever the outcome of
    its call. If the service has ``begin_call``, a query needs no task.
    """

    def __init__(self, loadgen: Any, requests: Requests, count: int, slo_s: float) -> None:
        self._loadgen, self._slo_s, self._count = loadgen, slo_s, count
        self._loop = asyncio.get_running_loop()
        self._begin = requests.begin or self._await_each(requests.call)
        self._queries: deque[tuple[int, int]] = deque()
        self._open: dict[int, Any] = {}  # query to its call, which can be cancelled
        self._scheduled = self._closed = False
        self._error: BaseException | None = None
        self._errors = ErrorLog("streaminfer.loadtest")

    async def run(self, settings: Any, folder: str) -> None:
        loadgen = self._loadgen
        logs = loadgen.LogSettings()
        logs.log_output.outdir = folder
        logs.enable_trace = False
        sut = loadgen.ConstructSUT(self._issue, self._flush)
        library = loadgen.ConstructQSL(self._count, self._count, lambda _samples: None, lambda _samples: None)
        start = loadgen.StartTestWithLogSettings
        running = self._loop.run_in_executor(None, start, sut, library, settings, logs, "")
        try:
            await asyncio.shield(running)
        finally:
            self._close()
            while not running.done():  # this task was cancelled, but LoadGen continues to the end of its schedule
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([running])
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(sut)
        if self._error is not None:
            raise self._error

    def _issue(self, samples: list[Any]) -> None:
        """Take queries; LoadGen calls this in its own thread."""
        self._queries.extend((sample.id, sample.index) for sample in samples)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon_threadsafe(self._begin_queries)

    def _flush(self) -> None:
        """Schedule the end of the run; LoadGen calls this in its own thread, after the last query."""
        drain_s = max(DRAIN_S, DRAIN_SLOS * self._slo_s)
        self._loop.call_soon_threadsafe(self._loop.call_later, drain_s, self._close)

    def _begin_queries(self) -> None:
        self._scheduled = False
        while self._queries:
            query, index = self._queries.popleft()
            self._open[query] = None  # the request may complete before `_begin` returns
            if self._closed:
                self._complete(query)
                continue
            try:
                call = self._begin(index, functools.partial(self._receive, query))
            except BaseException as error:  # noqa: BLE001 - the query gets it, or `run` raises it
                self._receive(query, None, error)
            else:
                if query in self._open:
                    self._open[query] = call

    def _await_each(self, call: Call) -> Begin:
        """Return a function that runs a request in a task and reports its outcome."""

        async def run(index: int, receive: Receive) -> None:
            try:
                await call(index)
            except BaseException as error:  # noqa: BLE001 - the query gets it, or `run` raises it
                receive(None, error)
            else:
                receive(None, None)

        return lambda index, receive: self._loop.create_task(run(index, receive))

    def _receive(self, query: int, _response: Any, error: BaseException | None) -> None:
        """Complete a query, or end the run on an error such as Ctrl-C.

        A failed query completes late, because LoadGen knows no errors.
        """
        if error is None:
            self._complete(query)
        elif not isinstance(error, (Exception, asyncio.CancelledError)):
            self._error = error
            self._close()
        else:
            if not isinstance(error, _REJECTIONS):
                self._errors.report("a request of the run", error)
            self._loop.call_later(_REJECTED_S + self._slo_s, self._complete, query)

    def _close(self) -> None:
        """Cancel the requests in flight, and complete their queries."""
        self._closed = True
        for query, call in list(self._open.items()):
            if call is not None:
                call.cancel()
            self._complete(query)

    def _complete(self, query: int) -> None:
        if query in self._open:
            del self._open[query]
            self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(query, 0, 0)])


def _read(path: Path) -> MlperfResult:
    summary = path.read_text(encoding="utf-8")
    entries = {
        name.strip(): value.strip()
        for name, _separator, value in (line.partition(":") for line in summary.splitlines())
    }
    result = entries.get("Result is", "")
    if result not in {"VALID", "INVALID"}:
        raise RuntimeError(expected("mlperf_log_summary.txt", "a result VALID or INVALID", result))
    return MlperfResult(result == "VALID", float(entries["99.00 percentile latency (ns)"]) / 1e9, summary)
