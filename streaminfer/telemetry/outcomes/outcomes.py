"""`Outcomes`: joins what users did with a response, reported later, with how the request was served."""

import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

from streaminfer._internal.forking import new_lock
from streaminfer._internal.listeners import LISTENER_ERRORS, ListenerFailures
from streaminfer._internal.units import format_duration
from streaminfer._internal.validation import (
    check_count,
    check_duration,
    check_duration_ns,
    check_instance,
    check_number,
    expected,
)
from streaminfer._runtime.stack_clock import StackClock
from streaminfer.protocols import Clock, is_service
from streaminfer.request import Request, Response
from streaminfer.sync_layer import SyncLayer, SyncService
from streaminfer.telemetry.families.label_family import LabelFamily
from streaminfer.telemetry.families.routes import OTHER, route_of
from streaminfer.telemetry.outcomes.outcome_table import OutcomeCell, OutcomeTable

__all__ = ["NO_RESPONSE", "Outcomes"]

NO_RESPONSE = "no response"
"""Route of a request that ended with an error."""

_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_MAX_CELLS = 1024
_MAX_OUTCOMES = 256  # each cell has sums for each outcome
_MAX_SETTLED = 16  # most per request or report: after a pause, no single call counts all expired requests


class _Pending:
    """A request that is open for reports."""

    __slots__ = ("cell", "expires_ns", "reports")

    def __init__(self, cell: OutcomeCell, expires_ns: int) -> None:
        self.cell = cell
        self.expires_ns = expires_ns
        self.reports: dict[str, float | None] = {}


class Outcomes(StackClock, SyncLayer):
    """Layer that remembers how requests were served until the application reports what their users did.

    Place it outside the cache and the router, next to `Telemetry`. A request gets an id inside ``with
    outcomes.request(id)``; requests without an id are not remembered. A request is counted after ``expires_s``, so
    rates do not depend on how soon users react.

    Args:
        expires_s: seconds after the response in which reports of a request are accepted, > 0.
        max_pending: most requests remembered. Beyond it, the oldest are removed and counted in ``evicted``, as is a
            request with an id that is used again.
        latency_buckets_s: bounds of the latency in seconds, ascending.
        id_of: returns the id of a request, or ``None``; replaces ``with outcomes.request(id)``.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, or ``time.monotonic_ns`` without a stack.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Threads: any number of threads may report and read at once.

    ::

        outcomes = Outcomes(expires_s=600.0)
        async with si.Stack(outcomes, si.AdaptiveBatcher(max_batch_size=8), model) as service:
            with outcomes.request("r-17"):
                y = await service(x)
            ...
            outcomes.report("r-17", "corrected")
            print(outcomes.table().by("degraded"))
    """

    fingerprint = ""  # the layer changes no response

    def __init__(
        self,
        *,
        expires_s: float = 3600.0,
        max_pending: int = 100_000,
        latency_buckets_s: Sequence[float] = _BUCKETS_S,
        id_of: Callable[[Request], Hashable] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._expires_ns = check_duration_ns("expires_s", expires_s, positive=True)
        self.max_pending = check_count("max_pending", max_pending)
        expectation = "ascending bounds, at least one"
        check_instance("latency_buckets_s", latency_buckets_s, Iterable, expectation)
        bounds = [check_duration("latency_buckets_s", bound, positive=True) for bound in latency_buckets_s]
        if not bounds or any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(expected("latency_buckets_s", expectation, latency_buckets_s))
        check_instance("id_of", id_of, lambda value: value is None or callable(value), "a function or None")
        clock = self._accept_clock(clock)
        self.clock = clock or time.monotonic_ns
        self._id_of = id_of
        self._id: ContextVar[Hashable] = ContextVar("streaminfer_request_id", default=None)
        self._bounds_ns = [check_duration_ns("latency_buckets_s", bound) for bound in bounds]
        self._buckets = (*(f"≤ {format_duration(bound)}" for bound in bounds), f"> {format_duration(bounds[-1])}")
        self._cells = LabelFamily(OutcomeCell, "route", "latency", "degraded", max_sets=_MAX_CELLS)
        # in order of the response; a `dict` would search through removed entries for the oldest
        self._pending: OrderedDict[Hashable, _Pending] = OrderedDict()
        self._lock = new_lock()
        self._failures = ListenerFailures("streaminfer", "outcomes")
        self._outcomes: set[str] = set()  # known names; later ones are "other"
        self.unknown = 0
        self.evicted = 0

    def wrap(self, inner: Any) -> SyncService:
        """Wrap a service with this layer.

        Raises:
            TypeError: ``inner`` is not a service; place the layer outside the batcher.
        """
        check_instance("inner", inner, is_service, "a service (outside the batcher)")
        return super().wrap(inner)

    @contextmanager
    def request(self, request_id: Hashable) -> Iterator[None]:
        """Give an id to the request that is sent inside the block; if an id is used again, the last request counts."""
        token = self._id.set(request_id)
        try:
            yield
        finally:
            self._id.reset(token)

    def report(self, request_id: Hashable, outcome: str, value: float | None = None) -> bool:
        """Report what a user did; a second report of the same outcome replaces the first.

        Args:
            request_id: id of the request.
            outcome: name of the outcome, such as ``"corrected"`` or ``"watched_s"``; after 256 names, new ones count as
                ``"other"``.
            value: a number that belongs to the outcome; ``None``: the outcome has no value.

        Returns:
            Whether the request was remembered.

        Raises:
            TypeError, ValueError: an argument has the wrong type, or the value is not finite.
        """
        check_instance("outcome", outcome, str, "a string")
        if value is not None:
            value = check_number("value", value, "a finite number or None", lambda it: abs(it) < float("inf"))
        with self._lock:
            now_ns = self.clock()
            self._expire(now_ns, _MAX_SETTLED)
            pending = self._pending_of(request_id, now_ns)
            if pending is None:
                self.unknown += 1
                return False
            if len(self._outcomes) < _MAX_OUTCOMES:
                self._outcomes.add(outcome)
            pending.reports[outcome if outcome in self._outcomes else OTHER] = value
            return True

    def table(self, *, settle: bool = False) -> OutcomeTable:
        """Return the outcomes by how the requests were served.

        Args:
            settle: count the pending requests at once, for the end of an experiment.
        """
        with self._lock:
            self._expire(self.clock(), len(self._pending))
            while settle and self._pending:
                self._settle_oldest()
            cells = []
            for values, cell in self._cells.items():
                copy = OutcomeCell()
                copy.add(cell)
                cells.append((values, copy))
            counters = {"pending": len(self._pending), "unknown": self.unknown, "evicted": self.evicted}
            return OutcomeTable.of(cells, self._buckets, **counters)

    def statistics(self) -> OutcomeTable:
        """Return :meth:`table`."""
        return self.table()

    def enter(self, request: Request, now_ns: int) -> int:  # noqa: ARG002 - any request is timed
        """Return the start of the request."""
        return now_ns

    def exit(self, request: Request, token: int, outcome: Response | BaseException, now_ns: int) -> None:
        """Remember how a request was served, if it has an id."""
        try:
            request_id = self._id.get() if self._id_of is None else self._id_of(request)
            if request_id is not None:
                self._note(request_id, outcome, token, now_ns)
        except LISTENER_ERRORS as failure:
            self._failures.report(self, "a response", failure)

    def _note(self, request_id: Hashable, outcome: Response | BaseException, started_ns: int, now_ns: int) -> None:
        route, degraded = NO_RESPONSE, False
        if isinstance(outcome, Response):
            route, degraded = route_of(outcome.source), outcome.degraded
        latency = self._buckets[bisect_left(self._bounds_ns, now_ns - started_ns)]
        with self._lock:
            self._expire(now_ns, _MAX_SETTLED)
            if self._pending_of(request_id, now_ns) is not None:
                del self._pending[request_id]
                self.evicted += 1
            self._pending[request_id] = _Pending(self._cells.of(route, latency, degraded), now_ns + self._expires_ns)
            if len(self._pending) > self.max_pending:
                self._pending.popitem(last=False)
                self.evicted += 1

    def _pending_of(self, request_id: Hashable, now_ns: int) -> _Pending | None:
        """Return the pending request with an id, or ``None``; count the request if its time is over."""
        pending = self._pending.get(request_id)
        if pending is None or pending.expires_ns > now_ns:
            return pending
        del self._pending[request_id]
        pending.cell.settle(pending.reports)
        return None

    def _expire(self, now_ns: int, at_most: int) -> None:
        for _ in range(at_most):
            if not self._pending or next(iter(self._pending.values())).expires_ns > now_ns:
                break
            self._settle_oldest()

    def _settle_oldest(self) -> None:
        _, pending = self._pending.popitem(last=False)
        pending.cell.settle(pending.reports)

    def _use_clock(self, clock: Clock) -> None:
        self.clock = clock

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __repr__(self) -> str:
        return f"<Outcomes: {len(self._pending)} pending>"
