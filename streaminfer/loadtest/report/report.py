"""`Report`: latencies of a load test over all due requests, schedule errors, and export to files."""

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.files.whole_file import write_whole
from streaminfer._internal.validation import (
    check_count,
    check_duration,
    check_instance,
    check_path,
    check_share,
    expected,
    field_check,
)
from streaminfer.loadtest.arrivals import check_run_s
from streaminfer.loadtest.capacity.search import Capacity
from streaminfer.loadtest.quantiles import quantile_of, quantiles_of, say_latency, say_share
from streaminfer.loadtest.sending.record import ANSWERED, Floats, Record
from streaminfer.loadtest.sending.requests import BEFORE

__all__ = ["Report", "Tail", "describe_machine"]

_FORMAT = "streaminfer.loadtest.report"
_VERSION = 1
_LEAST_ERROR_S = 0.001
_ERROR_SHARE = 0.1
_MAX_WINDOWS = 1_000_000
_FIELDS = ("name", "machine", "arrivals", "seed", "senders", "duration_s", "slo_s", "objective")
"""Fields of a report that are stored unchanged."""
TAILS = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


@attrs.frozen
class Tail:
    """Percentiles of a group of requests, or of a stage.

    Attributes:
        name: name of the group or stage.
        count: number of requests.
        on_time: share within the SLO; ``None`` for a stage.
        quantiles_s: percentiles by name, in seconds; infinite if too few requests got a response.
    """

    name: str
    count: int
    on_time: float | None
    quantiles_s: dict[str, float]


@attrs.frozen(eq=False, repr=False)
class Report:
    """Result of a load test.

    A percentile is over *all* requests that were due; a request without a response counts as infinitely late. Latency
    counts from the instant at which a request was due, so a pause of the service or of the sender counts in full.

    Attributes:
        record: record of each request.
        slo_s: seconds within which a response is on time.
        objective: share of requests that must be on time.
        duration_s: seconds during which requests were due.
        name: name of the run.
        seed: seed of the schedule.
        arrivals: description of the schedule.
        senders: number of processes that sent; 0: the event loop of the service sent.
        began: start of the run, in seconds since 1970.
        machine: description of the machine that sent.
        capacity: result of `find_capacity`, for pages and files; ``None`` without a search.
    """

    record: Record = attrs.field(validator=field_check(check_instance, Record, "a Record"))
    slo_s: float = attrs.field(kw_only=True, validator=field_check(check_duration, positive=True))
    objective: float = attrs.field(kw_only=True, default=0.99, validator=field_check(check_share))
    duration_s: float = attrs.field(kw_only=True, validator=field_check(check_run_s))
    name: str = attrs.field(kw_only=True, default="")
    seed: int = attrs.field(kw_only=True, default=0)
    arrivals: str = attrs.field(kw_only=True, default="")
    senders: int = attrs.field(kw_only=True, default=0)
    began: float = attrs.field(kw_only=True, default=0.0)
    machine: str = attrs.field(kw_only=True, default="")
    capacity: Capacity | None = attrs.field(kw_only=True, default=None)

    # -- figures ------------------------------------------------------------------------------------------------

    @property
    def requests(self) -> int:
        """Number of requests that were due."""
        return len(self.record)

    @property
    def latencies_s(self) -> Floats:
        """Latency of each request, in the order of due time; infinite without a response."""
        return self.record.latency_s

    def quantile(self, q: float) -> float:
        """Return a percentile of the latency in seconds, over all due requests; ``q`` is a share such as 0.99."""
        return quantile_of(self.latencies_s, q)

    def quantiles(self, qs: ArrayLike) -> Floats:
        """Return percentiles: for each share, the smallest latency that at least this share did not exceed."""
        return quantiles_of(self.latencies_s, qs)

    @property
    def on_time(self) -> float:
        """Share of all requests that got a response within the SLO."""
        return float(np.mean(self.latencies_s <= self.slo_s))

    @property
    def outcomes(self) -> dict[str, int]:
        """Number of requests by outcome: ``ok``, ``unanswered``, or the class of an exception."""
        return dict(Counter(self.record.outcome.tolist()).most_common())

    @property
    def rate(self) -> float:
        """Requests that were due per second."""
        return self.requests / self.duration_s

    @property
    def goodput(self) -> float:
        """Requests per second that got a response on time."""
        return self.on_time * self.rate

    # -- the schedule -------------------------------------------------------------------------------------------

    def schedule_error_s(self, q: float = 0.99) -> float:
        """Return a percentile of the delay from due time to send time; infinite for requests that were never sent."""
        late = np.where(np.isnan(self.record.late_s), np.inf, self.record.late_s)
        return quantile_of(late, q)

    @property
    def schedule_limit_s(self) -> float:
        """Schedule error above which the sender was the bottleneck: a tenth of the SLO, at least a millisecond."""
        return max(_LEAST_ERROR_S, _ERROR_SHARE * self.slo_s)

    @property
    def kept_schedule(self) -> bool:
        """True if 99 % of the requests were sent within `schedule_limit_s`; otherwise there is no verdict."""
        return self.schedule_error_s() <= self.schedule_limit_s

    @property
    def passed(self) -> bool | None:
        """True if the share on time reaches the objective; ``None``: the schedule was not kept, so no verdict."""
        return self.on_time >= self.objective if self.kept_schedule else None

    # -- parts --------------------------------------------------------------------------------------------------

    @property
    def total(self) -> Tail:
        """Tail of all requests."""
        return self._tail("all requests", self.record)

    def by_label(self, label: str) -> list[Tail]:
        """Return a tail for each value of a label, such as ``device``.

        Raises:
            ValueError: no request has that label.
        """
        column = self._labels(label)
        return [self._tail(value, self.record.where(column == value)) for value in sorted(set(column.tolist()) - {""})]

    def by_stage(self, label: str | None = None, value: str = "") -> list[Tail]:
        """Return a tail for each timed stage, and for the age of the results if it differs from the latency.

        Args:
            label: label that selects requests; ``None``: all requests.
            value: value of that label, as in ``by_stage("device", "phone")``.

        Raises:
            ValueError: no request has that label.
        """
        record = self.record if label is None else self.record.where(self._labels(label) == value)
        stages = dict(record.stages)
        before = stages.pop(BEFORE, None)
        if before is not None:
            stages["age"] = np.nan_to_num(before) + record.latency_s
        timed = {name: column[~np.isnan(column)] for name, column in stages.items()}
        return [Tail(name, column.size, None, _by_name(column)) for name, column in timed.items() if column.size]

    def means(self, label: str) -> dict[str, dict[str, float]]:
        """Return the mean of each measured value, such as an accuracy, for each value of a label.

        Raises:
            ValueError: no request has that label.
        """
        column = self._labels(label)
        means: dict[str, dict[str, float]] = {}
        for value in sorted(set(column.tolist()) - {""}):
            chosen = {
                name: numbers[(column == value) & ~np.isnan(numbers)] for name, numbers in self.record.values.items()
            }
            means[value] = {name: float(numbers.mean()) for name, numbers in chosen.items() if numbers.size}
        return means

    def windows(self, count: int) -> Iterator[tuple[float, Floats]]:
        """Yield equal windows, at most a million: the start of each, and the latencies of the requests due in it."""
        edges = np.linspace(0.0, self.duration_s, check_count("count", count, at_most=_MAX_WINDOWS) + 1)
        bounds = np.searchsorted(self.record.due_s, edges)
        bounds[-1] = self.requests
        for begin_s, first, last in zip(edges[:-1].tolist(), bounds[:-1], bounds[1:], strict=True):
            yield begin_s, self.latencies_s[first:last]

    # -- files --------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values; an infinite latency is ``None``."""
        return {
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.began)),
            **{name: getattr(self, name) for name in (*_FIELDS, "requests", "rate", "on_time", "passed", "outcomes")},
            "schedule": {
                "kept": self.kept_schedule,
                "error_p99_s": _finite(self.schedule_error_s()),
                "limit_s": self.schedule_limit_s,
            },
            "latency_s": _finite_all(self.total.quantiles_s),
            "stages": _by_tail(self.by_stage()),
            "labels": {
                label: {
                    tail.name: {
                        "on_time": tail.on_time,
                        **_finite_all(tail.quantiles_s),
                        "stages": _by_tail(self.by_stage(label, tail.name)),
                    }
                    for tail in self.by_label(label)
                }
                for label in self.record.labels
            },
            "means": {
                label: {value: _finite_all(means) for value, means in self.means(label).items()}
                for label in (self.record.labels if self.record.values else ())
            },
            "capacity": None if self.capacity is None else self.capacity.to_dict(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the figures and every request as JSON; :meth:`load` reads the file, for a comparison.

        Raises:
            OSError: the file cannot be written.
        """
        stored = {
            "format": _FORMAT,
            "version": _VERSION,
            "report": self.to_dict() | {"began_s": self.began},
            "record": self.record.encode(),
        }
        write_whole(path, json.dumps(stored, indent=1).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a report that :meth:`save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is not a saved report.
        """
        text = check_path("path", path).read_bytes()
        try:
            stored = json.loads(text)
            _check_format(stored)
            fields_stored, record = stored["report"], Record.decode(stored["record"])
            capacity_stored = fields_stored.get("capacity")  # reports of earlier builds have no capacity
            capacity = None if capacity_stored is None else Capacity.from_dict(capacity_stored)
            fields = {name: fields_stored[name] for name in _FIELDS}
            return cls(record, began=fields_stored["began_s"], capacity=capacity, **fields)
        except Exception as error:  # a corrupt file can raise a dozen types, all with this cause
            raise ValueError(f"{os.fspath(path)}: not a saved report: {error}") from error

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained page with figures, pictures and tables.

        Pictures need the extra ``plot``; without it the page has only tables.

        Raises:
            OSError: the file cannot be written.
        """
        from streaminfer.loadtest.report.page import make_page  # noqa: PLC0415 - not every run writes a page

        make_page(self, path=path)

    def to_junit(self, path: str | os.PathLike[str]) -> None:
        """Write the checks of the report as JUnit XML, for CI.

        Raises:
            OSError: the file cannot be written.
        """
        from streaminfer.loadtest.report.junit import make_junit  # noqa: PLC0415 - likewise

        write_whole(path, make_junit(self).encode())

    def describe(self) -> list[str]:
        """Return the result in sentences."""
        from streaminfer.loadtest.report.sentences import describe  # noqa: PLC0415 - likewise

        return describe(self)

    def _repr_html_(self) -> str:
        from streaminfer.loadtest.report.page import make_summary  # noqa: PLC0415 - a notebook's need

        return make_summary(self)

    def __repr__(self) -> str:
        p99 = say_latency(self.quantile(0.99))
        lost = "".join(f", {count} {outcome}" for outcome, count in self.outcomes.items() if outcome != ANSWERED)
        return f"<Report {self.name!r}: {self.requests} requests, p99 {p99}, {say_share(self.on_time)} on time{lost}>"

    def _labels(self, label: object) -> NDArray[np.str_]:
        if not isinstance(label, str) or label not in self.record.labels:
            known = ", ".join(map(repr, self.record.labels)) or "none, since no input is a Sample with labels"
            raise ValueError(expected("label", f"one of {known}", label))
        return self.record.labels[label]

    def _tail(self, name: str, record: Record) -> Tail:
        on_time = float(np.mean(record.latency_s <= self.slo_s))
        return Tail(name, len(record), on_time, _by_name(record.latency_s))


def describe_machine() -> str:
    """Return a description of the machine that runs this process."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.system()} {platform.machine()}, {cores} cores, Python {platform.python_version()}"


def _check_format(stored: Any) -> None:
    actual = stored.get("format"), stored.get("version")
    if actual != (_FORMAT, _VERSION):
        raise ValueError(expected("format", f"{_FORMAT}, version {_VERSION}", actual))


def _by_name(seconds: Floats) -> dict[str, float]:
    return dict(zip(TAILS, quantiles_of(seconds, list(TAILS.values())).tolist(), strict=True))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _by_tail(tails: list[Tail]) -> dict[str, dict[str, float | None]]:
    return {tail.name: _finite_all(tail.quantiles_s) for tail in tails}


def _finite_all(values: dict[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}
