"""`Telemetry`: the outermost layer, which records every request, cache hits and rejections included."""

import asyncio
import functools
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from streaminfer._internal.listeners import LISTENER_ERRORS, ListenerFailures
from streaminfer._internal.validation import check_instance, expected
from streaminfer._runtime.stack_clock import StackClock
from streaminfer._runtime.wrapped_kind import kind_of
from streaminfer.protocols import Clock, P, R, Service, adapt
from streaminfer.telemetry._recorded_service_cy import RecordedService
from streaminfer.telemetry._recorder_cy import Recorder
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram

if TYPE_CHECKING:
    from streaminfer.telemetry.families.labeled_latency import LabeledLatency
    from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram
    from streaminfer.telemetry.objectives.slo import SLO
    from streaminfer.telemetry.statistics import TelemetryStatistics

__all__ = ["Telemetry"]


class Telemetry(StackClock):
    """Records the latency of every request, its parts, its outcome and the size of its batch.

    Recording takes well under a microsecond and never blocks. In the compiled build several threads may record at
    once. One telemetry may wrap several services, which then share its figures.

    Args:
        name: name of the service, for reports.
        slo: an objective; each completed request is an event of it. Several telemetries may share one. The objective
            uses the telemetry's clock, unless it was given a clock itself.
        recent: a histogram of the latency in a recent window, such as the last minute; it gets the clock in the same
            way.
        labels: labels by which latency and outcomes are recorded as well: some of ``"tenant"``, ``"route"`` (the route
            of the response) and ``"priority"``.
        max_label_sets: most sets of label values that are counted separately; later sets count as ``"other"``, so that
            no client can fill the memory.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, or ``time.monotonic_ns`` without a stack.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or a label is unknown.
    """

    def __init__(
        self,
        name: str = "",
        *,
        slo: "SLO | None" = None,
        recent: "RollingHistogram | None" = None,
        labels: Sequence[str] = (),
        max_label_sets: int = 64,
        clock: Clock | None = None,
    ) -> None:
        check_instance("name", name, str, "a string")
        clock = self._accept_clock(clock)
        self.name = name
        self.slo = slo
        self.recent = recent
        self.clock: Clock = time.monotonic_ns
        self._failures = ListenerFailures("streaminfer", f"telemetry {name!r}")
        self._histograms = [LatencyHistogram() for _ in range(5)]
        self._recorder = _recorder_with(slo, recent, self._histograms)
        self._labeled = None if not labels else _labeled_with(labels, max_label_sets)
        if clock is not None:
            self._use_clock(clock)
        self._services: weakref.WeakSet[RecordedService] = weakref.WeakSet()
        self._zero: TelemetryStatistics | None = None  # totals at the last reset
        self._interval: TelemetryStatistics | None = None
        self.begin = self._recorder.begin
        self.answer = self._recorder.answer

    def _use_clock(self, clock: Clock) -> None:
        self.clock = clock
        for part in (self.slo, self.recent):
            if part is not None:
                part.bind_clock(clock)

    @overload
    def wrap(self, inner: Service) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R]) -> Callable[P, R]: ...
    def wrap(self, inner: Any) -> Any:
        """Wrap a service or a function, so that each call is recorded.

        Args:
            inner: a service, or a sync or async function; a function stays sync or async.

        Raises:
            TypeError: ``inner`` is a backend: its batches are not requests, so place the telemetry outside the batcher;
                or a generator function: its call returns before its work begins; or a function although the telemetry
                has labels, which only requests have.
        """
        kind = kind_of(inner)
        if kind == "service":
            service = RecordedService(self, inner, None if self._labeled is None else self._labeled.recorder)
            self._services.add(service)
            return service
        if kind == "backend":
            raise TypeError(expected("inner", "a service (outside the batcher) or a function", inner))
        if self._labeled is not None:
            raise TypeError(expected("inner", "a service, since a function has no labels", inner))
        return self._wrap_async(inner) if kind == "async function" else self._wrap_sync(inner)

    def statistics(self) -> "TelemetryStatistics":
        """Return a frozen snapshot, with copies of the histograms."""
        return self._totals() if self._zero is None else self._totals().since(self._zero)

    def reset(self) -> None:
        """Restart the statistics from zero; requests in flight, the objective and ``recent`` are not affected.

        Afterwards the extremes of the histograms are exact only to the bounds of their parts.
        """
        self._zero = self._interval = self._totals()

    def interval(self) -> "TelemetryStatistics":
        """Return the statistics since the last call or the last :meth:`reset`, for periodic reports.

        It supports one reader only. ``in_flight`` and ``slo`` show the current state.
        """
        now = self._totals()
        before, self._interval = self._interval, now
        return now if before is None else now.since(before)

    @property
    def histograms(self) -> Mapping[str, LatencyHistogram]:
        """The live histograms since the start, by name: the latency and its parts."""
        from streaminfer.telemetry.statistics import HISTOGRAMS  # noqa: PLC0415 - serving does not need it

        return dict(zip(HISTOGRAMS, self._histograms, strict=True))

    def live_statistics(self) -> "TelemetryStatistics":
        """Return statistics since the start with the live histograms, for exporters that read them at once."""
        return self._totals(live=True)

    def _totals(self, *, live: bool = False) -> "TelemetryStatistics":
        from streaminfer.telemetry.statistics import PARTS, TelemetryStatistics, read_responses  # noqa: PLC0415 - likewise

        parts = {name: it if live else it.copy() for name, it in zip(PARTS, self._histograms[1:], strict=True)}
        latency, degraded, responses = read_responses(self._recorder, self._histograms[0], live=live)
        in_flight, outcomes = self._counts(degraded, responses)
        return TelemetryStatistics(
            name=self.name,
            in_flight=in_flight,
            outcomes=outcomes,
            latency=latency,
            **parts,
            batch_sizes=dict(sorted(self._recorder.batch_sizes.items())),
            recent=None if live or self.recent is None else self.recent.snapshot(),
            server_parts=self._server_parts(),
            slo=None if self.slo is None else self.slo.statistics(),
            labeled=() if self._labeled is None else self._labeled.statistics(live=live),
        )

    def _counts(self, degraded: int, responses: int) -> tuple[int, dict[str, int]]:
        """Return the requests in flight, and those completed by outcome."""
        outcomes = {"ok": responses - degraded, "degraded": degraded, **self._recorder.errors}
        outcomes = {outcome: count for outcome, count in outcomes.items() if count}
        return self._recorder.started - sum(outcomes.values()), outcomes

    def _server_parts(self) -> Mapping[str, float]:
        parts: dict[str, float] = {}
        for service in tuple(self._services):
            read_parts = adapt(service.inner).capabilities().server_parts
            if read_parts is not None:
                parts.update(read_parts())
        return parts

    @staticmethod
    def reason_of(error: BaseException) -> str:
        """Return the outcome under which an error is counted."""
        return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__

    def fail(self, error: BaseException, timeout_s: float | None = None) -> None:
        """Count a request that completed without a response; ``timeout_s`` is the time that its caller gave it."""
        self._recorder.fail(self.reason_of(error))
        if self.slo is not None:
            self.slo.record(error, timeout_s)

    def _begin_safely(self) -> None:
        try:
            self.begin()
        except LISTENER_ERRORS as failure:
            self._failures.report(self, "the begin of a request", failure)

    def _fail_safely(self, error: BaseException, timeout_s: float | None = None) -> None:
        try:
            self.fail(error, timeout_s)
        except LISTENER_ERRORS as failure:
            self._failures.report(self, repr(error), failure)

    def _record_safely(self, started_ns: int) -> None:
        try:
            self._recorder.record(started_ns, self.clock())
        except LISTENER_ERRORS as failure:
            self._failures.report(self, "a response", failure)

    def _wrap_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def recorded(*args: Any, **kwargs: Any) -> Any:
            self._begin_safely()
            started_ns = self.clock()
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                self._fail_safely(error)
                raise
            self._record_safely(started_ns)
            return result

        return recorded

    def _wrap_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            self._begin_safely()
            started_ns = self.clock()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                self._fail_safely(error)
                raise
            self._record_safely(started_ns)
            return result

        return recorded

    def __repr__(self) -> str:
        return f"<Telemetry({self.name!r}): {self._recorder.started} requests>"


def _recorder_with(
    slo: "SLO | None", recent: "RollingHistogram | None", histograms: list[LatencyHistogram]
) -> Recorder:
    if slo is None and recent is None:
        return Recorder(*histograms)
    # imported here, so that it is loaded only with an objective or a rolling histogram
    from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram  # noqa: PLC0415
    from streaminfer.telemetry.objectives._budget_recorder_cy import BudgetRecorder  # noqa: PLC0415
    from streaminfer.telemetry.objectives.slo import SLO  # noqa: PLC0415

    check_instance("slo", slo, SLO | None, "an SLO or None")
    expectation = "a RollingHistogram or None"
    check_instance("recent", recent, RollingHistogram | None, expectation)
    return BudgetRecorder(slo, recent, *histograms)


def _labeled_with(labels: Sequence[str], max_sets: int) -> "LabeledLatency":
    from streaminfer.telemetry.families.labeled_latency import LabeledLatency  # noqa: PLC0415 - loaded with labels only

    return LabeledLatency(labels, max_sets)
