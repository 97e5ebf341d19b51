"""`what_if`: recorded traffic under another SLO, largest batch, policy, number of workers or device.

A policy depends only on the queue, the time and the free workers, so a recorded trace can be played again with
everything else changed. Each argument may be one value or several alternatives. Every combination is simulated, and the
results form a table to read, plot or search. Deterministic: the same trace and arguments give the same table.

It cannot predict how callers would have behaved (a caller who gets a response sooner may send the next request sooner),
nor a device's noise, unless ``noise`` is given. Cost: one `simulate` per combination, a few microseconds per request.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from streaminfer._internal.display.figures import draw_placeholder, inline_svg, shown_name
from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.validation import check_choice, check_duration, check_instance, expected
from streaminfer.batching.policy import POLICY_NAMES, PolicyName
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.simulation.simulation_result import SimulationResult
from streaminfer.simulation.simulator import simulate
from streaminfer.simulation.trace import Trace

__all__ = ["Scenario", "ScenarioTable", "what_if"]

_SETTINGS = ("service_time", "max_batch_size", "slo_s", "policy", "workers", "max_queue_delay_s")
_ALONG_X = {
    "slo_s": "SLO, s",
    "max_batch_size": "largest batch",
    "workers": "workers",
    "max_queue_delay_s": "queue delay, s",
}
_LINES = 6
_BARS = 20
_LONGEST_NAME = 48
_LONGEST_DEVICE = 24
_SHOW_AFTER_S = 1.0


@attrs.frozen(kw_only=True)
class Scenario:
    """One combination of settings, and its outcome.

    Attributes:
        service_time: the name of the device.
        max_batch_size: the largest batch.
        slo_s: the time limit of every request; ``None``: the time limits of the trace.
        policy: the policy's name.
        workers: how many batches could run at once.
        max_queue_delay_s: the delay of ``"greedy"``; 0.0 with other policies.
        on_time: requests completed by their deadline.
        dropped: requests never part of a batch.
        late: requests completed after their deadline.
        p50_s: median latency of the completed requests, from arrival to response; NaN if there were none.
        p99_s: their 99th percentile.
        mean_batch_size: mean requests per batch; NaN without a batch.
        utilization: busy time of the workers as a share of the time until the last batch ended.
    """

    service_time: str
    max_batch_size: int
    slo_s: float | None
    policy: str
    workers: int
    max_queue_delay_s: float
    on_time: int
    dropped: int
    late: int
    p50_s: float
    p99_s: float
    mean_batch_size: float
    utilization: float

    @property
    def share_on_time(self) -> float:
        """``on_time`` as a share of all requests; 1.0 if there were none."""
        return self._share(self.on_time, 1.0)

    @property
    def share_dropped(self) -> float:
        """``dropped`` as a share of all requests."""
        return self._share(self.dropped, 0.0)

    @property
    def share_late(self) -> float:
        """``late`` as a share of all requests."""
        return self._share(self.late, 0.0)

    def _share(self, count: int, of_none: float) -> float:
        requests = self.on_time + self.dropped + self.late
        return count / requests if requests else of_none


@attrs.frozen(eq=False, repr=False)
class ScenarioTable(Sequence[Scenario]):
    """Outcomes of all combinations; a sequence of `Scenario`, in which the last argument of `what_if` varies fastest.

    Attributes:
        trace: the traffic.
        outcomes: outcome of each combination.
        devices: service times by the names in ``Scenario.service_time``.
        noise: noise of the devices.
        seed: seed of the noise.
    """

    trace: Trace
    outcomes: tuple[Scenario, ...]
    devices: Mapping[str, ServiceTime]
    noise: float
    seed: int

    def __len__(self) -> int:
        return len(self.outcomes)

    def __getitem__(self, at: Any) -> Any:
        return self.outcomes[at]

    def best(self) -> Scenario:
        """Return the outcome with most requests on time; among equals, fewest workers, then the shortest ``p99_s``.

        If both policies did equally well, it is that of ``"lookahead"``, which loses fewer requests if more come. A
        longer SLO makes it easier to be on time: compare SLOs with your callers in mind.
        """
        return min(self.outcomes, key=_rank)

    def replay(self, outcome: Scenario) -> SimulationResult:
        """Run one combination again for details that the table lacks: each latency, each batch, the timeline.

        Args:
            outcome: an outcome of this table.

        Raises:
            ValueError: the outcome is not in this table.
        """
        if outcome not in self.outcomes:
            raise ValueError(expected("outcome", "one of these outcomes", outcome))
        return _run(
            self.trace, self.devices, {name: getattr(outcome, name) for name in _SETTINGS}, self.noise, self.seed
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the shares of requests on time, late and dropped.

        If a number was varied (SLO, largest batch, workers or delay) and the other settings have at most six
        combinations, the plot shows the share on time along that number, with a line for each combination; of several
        numbers, the one with the most values. Otherwise it has a bar for each outcome, best first, at most twenty.

        Args:
            ax: a matplotlib ``Axes`` to draw on; ``None``: a new figure.

        Returns:
            The axes; the share is on the y axis of lines, and on the x axis of bars.

        Raises:
            MissingExtra: matplotlib is not installed (``pip install 'streaminfer[plot]'``).
        """
        axes = self._draw(ax)
        if not len(self.trace):
            draw_placeholder(axes, "no requests in the trace")
        return axes

    def _draw(self, ax: Any) -> Any:
        from streaminfer.simulation.scenario_plot import plot_bars, plot_lines  # noqa: PLC0415 - a simulation draws none

        varied = self._varied()
        numbers = [name for name in _ALONG_X if name in varied and self._values(name).isdisjoint({None})]
        along = max(numbers, key=lambda name: len(self._values(name)), default=None)
        if along is not None:
            others = [name for name in varied if name != along]
            lines: dict[str, list[tuple[float, float]]] = {}
            for outcome in self.outcomes:
                point = (getattr(outcome, along), outcome.share_on_time)
                lines.setdefault(_label(outcome, others), []).append(point)
            if len(lines) <= _LINES:
                return plot_lines(ax, _ALONG_X[along], lines)
        best = sorted(self.outcomes, key=_rank)[:_BARS]
        shares = {
            "on time": [outcome.share_on_time for outcome in best],
            "late": [outcome.share_late for outcome in best],
            "dropped": [outcome.share_dropped for outcome in best],
        }
        names = [_label(outcome, varied) or "as given" for outcome in best]
        of = ""
        if max(map(len, names)) > _LONGEST_NAME:  # long names leave no room for the bars: name the settings only once
            names, of = [self._in_short(outcome, varied) for outcome in best], ", ".join(varied)
        else:
            names = [shown_name(name, _LONGEST_NAME) for name in names]
        return plot_bars(ax, names, shares, len(self), of)

    def _in_short(self, outcome: Scenario, names: list[str]) -> str:
        device, settings = outcome.service_time, {name: _setting(outcome, name) for name in names}
        if "service_time" in settings:
            settings["service_time"] = shown_name(device, _LONGEST_DEVICE)
            if len(device) > _LONGEST_DEVICE:  # two shortened names may look the same
                settings["service_time"] = f"{[*self.devices].index(device) + 1}: {settings['service_time']}"
        return ", ".join(settings.values())

    def _values(self, name: str) -> set[Any]:
        return {getattr(outcome, name) for outcome in self.outcomes}

    def _varied(self) -> list[str]:
        return [name for name in _SETTINGS if len(self._values(name)) > 1]

    def _table(self) -> tuple[str, list[list[str]]]:
        """Return a line with the common settings, and rows of cells with the varied ones, the first row the head."""
        varied = self._varied()
        first = self.outcomes[0]
        common_names = [
            name for name in _SETTINGS if name not in varied and (name != _SETTINGS[-1] or first.max_queue_delay_s)
        ]
        common = _label(first, common_names)
        title = f"{len(self.trace)} requests in {self.trace.duration_s:.4g} s, {self.trace.rate:.4g} a second; {common}"
        rows = [[*varied, "on time", "dropped", "late", "p50", "p99", "mean batch", "busy"]]
        rows += [
            [
                *(_setting(it, name) for name in varied),
                *(f"{share:.1%}" for share in (it.share_on_time, it.share_dropped, it.share_late)),
                *(f"{seconds * 1e3:.1f} ms" for seconds in (it.p50_s, it.p99_s)),
                f"{it.mean_batch_size:.1f}",
                f"{it.utilization:.0%}",
            ]
            for it in self.outcomes
        ]
        return title, rows

    def __repr__(self) -> str:
        title, rows = self._table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([title, *lines])

    def _repr_html_(self) -> str:
        title, (head, *rows) = self._table()
        return inline_svg(self.plot, f"Share on time: {title}", height_in=4.0) + html_table(
            rows, head=head, caption=title
        )


def what_if(
    trace: Trace,
    *,
    service_time: ServiceTime | Mapping[str, ServiceTime] | Iterable[ServiceTime | tuple[str, ServiceTime]],
    max_batch_size: int | Iterable[int],
    slo_s: float | Iterable[float | None] | None = None,
    policy: PolicyName | Iterable[PolicyName] = "lookahead",
    workers: int | Iterable[int] = 1,
    max_queue_delay_s: float | Iterable[float] = 0.0,
    noise: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ScenarioTable:
    """Play recorded traffic again under every combination of the given alternatives.

    Args:
        trace: the traffic; ``batcher.decision_log().to_trace()`` returns that of a live batcher.
        service_time: durations of batches: one `ServiceTime` (``batcher.service_time.fitted()`` returns the one that a
            live batcher has learned), a mapping of names to them, or several, each alone or as
            ``(name, service_time)``.
        max_batch_size: the largest batch, or several.
        slo_s: a time limit for every request, or several; ``None``: each request's own, as recorded.
        policy: ``"lookahead"``, ``"greedy"``, or several.
        workers: how many batches may run at once, like a live batcher's ``max_in_flight``, or several numbers.
        max_queue_delay_s: the delay of ``"greedy"``, or several; other policies have none and run once.
        noise: each duration is multiplied by ``exp(noise * z)``, z standard normal, as in `simulate`.
        seed: seed of the noise; the same for every combination.
        progress: called before each combination and at the end, with the number of finished combinations and of all.
            ``None``: a line on stderr, if that is a terminal or a notebook and the run takes longer than a second.

    Returns:
        The outcomes, in the order of the arguments above, the last varying fastest.

    Raises:
        TypeError, ValueError: an argument has the wrong type, is out of range, or has no alternatives.

    Example:
        >>> from streaminfer.batching import ServiceTime, arrivals
        >>> device = ServiceTime.affine(0.005, 0.001)
        >>> table = what_if(
        ...     Trace(arrivals.poisson(900, 2000, 1)), service_time=device, max_batch_size=32,
        ...     slo_s=0.05, policy=["greedy", "lookahead"],
        ... )
        >>> table.best().policy
        'lookahead'
    """
    check_instance("trace", trace, Trace, "a Trace; DecisionLog.to_trace() gives that of a batcher")
    devices = _devices(service_time)
    given = (list(devices), max_batch_size, slo_s, policy, workers, max_queue_delay_s)
    settings = {name: _alternatives(name, value) for name, value in zip(_SETTINGS, given, strict=True)}
    for limit_s in settings["slo_s"]:
        if limit_s is not None:
            check_duration("slo_s", limit_s, positive=True)
    for name in settings["policy"]:
        check_choice("policy", name, POLICY_NAMES)
    combinations = [dict(zip(settings, values, strict=True)) for values in itertools.product(*settings.values())]
    for combination in combinations:
        if combination["policy"] != "greedy":
            combination["max_queue_delay_s"] = 0.0
    combinations = [it for at, it in enumerate(combinations) if it not in combinations[:at]]
    check_instance("progress", progress, lambda it: it is None or callable(it), "a function of two numbers or None")
    report = _progress() if progress is None else progress
    outcomes = []
    for done, combination in enumerate(combinations):
        report(done, len(combinations))
        outcomes.append(_outcome(combination, _run(trace, devices, combination, noise, seed)))
    report(len(combinations), len(combinations))
    return ScenarioTable(trace, tuple(outcomes), devices, noise, seed)


def _run(
    trace: Trace, devices: Mapping[str, ServiceTime], settings: Mapping[str, Any], noise: float, seed: int
) -> SimulationResult:
    slo_s = settings["slo_s"]
    return simulate(
        trace.arrivals_s,
        slo_s=1.0 if slo_s is None else slo_s,  # unused if deadlines are given
        deadlines_s=trace.deadlines_s if slo_s is None else None,
        priorities=trace.priorities,
        service_time=devices[settings["service_time"]],
        noise=noise,
        seed=seed,
        **{name: settings[name] for name in ("max_batch_size", "policy", "workers", "max_queue_delay_s")},
    )


def _outcome(settings: Mapping[str, Any], result: SimulationResult) -> Scenario:
    answered_s = result.latencies_s[~np.isnan(result.latencies_s)]
    p50_s, p99_s = np.quantile(answered_s, (0.5, 0.99)).tolist() if answered_s.size else (np.nan, np.nan)
    ends_s, sizes = result.batch_ends_s, result.batch_sizes
    busy_s = float((ends_s - result.batch_starts_s).sum())
    return Scenario(
        **settings,
        on_time=result.on_time,
        dropped=result.dropped,
        late=result.late,
        p50_s=p50_s,
        p99_s=p99_s,
        mean_batch_size=float(sizes.mean()) if sizes.size else np.nan,
        utilization=busy_s / (result.workers * float(ends_s.max())) if sizes.size else 0.0,
    )


def _alternatives(name: str, value: Any) -> list[Any]:
    """Return one value, or several, as a list of different ones."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, str) or not isinstance(value, Iterable):
        return [value]
    values = list(value)
    different = [it for at, it in enumerate(values) if it not in values[:at]]
    if not different:
        raise ValueError(expected(name, "at least one alternative", value))
    return different


def _devices(service_time: Any) -> dict[str, ServiceTime]:
    """Return service times by name; one without a name is named by its ``repr``."""
    entries = service_time.items() if isinstance(service_time, Mapping) else service_time
    expectation = "a ServiceTime, several, or (name, ServiceTime); fitted() gives that of a learned one"
    if isinstance(entries, ServiceTime):
        entries = [entries]
    check_instance(
        "service_time", entries, lambda it: isinstance(it, Iterable) and not isinstance(it, str), expectation
    )
    devices: dict[str, ServiceTime] = {}
    for entry in entries:
        name, device = entry if isinstance(entry, tuple) and len(entry) == 2 else (repr(entry), entry)
        if not (isinstance(name, str) and isinstance(device, ServiceTime)):
            raise TypeError(expected("service_time", expectation, entry))
        if devices.setdefault(name, device) != device:
            raise ValueError(expected("service_time", "a name of its own for each", name))
    if not devices:
        raise ValueError(expected("service_time", "at least one alternative", service_time))
    return devices


def _rank(outcome: Scenario) -> tuple[float, ...]:
    # NaN, of an outcome without a response, cannot be ordered, so it comes last
    p99_s = np.inf if np.isnan(outcome.p99_s) else outcome.p99_s
    # a trace that was easy for both policies does not tell them apart, and the next one may be harder
    return -outcome.on_time, outcome.workers, p99_s, outcome.policy == "greedy"


def _setting(outcome: Scenario, name: str) -> str:
    value = getattr(outcome, name)
    if name == "slo_s" and value is None:
        return "as recorded"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _label(outcome: Scenario, names: list[str]) -> str:
    return ", ".join(f"{name}={_setting(outcome, name)}" for name in names)


def _progress() -> Callable[[int, int], None]:
    """Return a report of progress for a terminal or a notebook; it is silent for the first second."""
    if not (sys.stderr.isatty() or "ipykernel" in sys.modules):  # a notebook's stderr is not a terminal
        return lambda _done, _total: None
    began = time.perf_counter()

    def report(done: int, total: int) -> None:
        if time.perf_counter() - began >= _SHOW_AFTER_S:
            sys.stderr.write(f"\rwhat_if: {done} of {total}" + ("\n" if done == total else ""))
            sys.stderr.flush()

    return report
