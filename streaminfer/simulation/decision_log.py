"""Decision log: why batches were released and requests dropped, as far back as the event ring reaches.

A batcher notes its events in an event ring that is always on (``_event_ring_cy``). The log is a copy of the ring at one
moment, in NumPy arrays, to be read, drawn, tabulated, or replayed with another policy. It has three parts, each with a
fixed number of latest entries, so they reach back differently far. Only the counters by reason cover the batcher's
whole life.
"""

import os
from typing import TYPE_CHECKING, Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.display.figures import inline_svg
from streaminfer._internal.display.html_table import html_table
from streaminfer._internal.files.whole_file import write_whole
from streaminfer._internal.validation import check_count, check_duration_ns, check_instance
from streaminfer.batching.queue._event_ring_cy import EventRing
from streaminfer.simulation.timeline_plot import draw_timeline
from streaminfer.simulation.trace import Trace

if TYPE_CHECKING:
    from streaminfer.telemetry.objectives.slo import SLO

__all__ = ["DROP_REASONS", "RELEASE_REASONS", "DecisionLog"]

RELEASE_REASONS = {
    "full": "the queue held a full batch, or was itself full",
    "idle_worker": "a worker was free, so all that was queued was released, or the worker's share of it",
    "returning_callers": "a free worker had waited for callers of the last batch, who usually return soon",
    "max_queue_delay": "the oldest request had been queued for the delay that was set",
    "planned": "not everything queued could be on time, and the plan that saves most begins with this batch",
    "probe": "no request was predicted to meet its deadline, so the queue was sent to measure the model again",
    "exploration": "the duration of a batch of this size was unknown, or its last measurement was long ago",
}
"""Reasons of released batches, in words."""

DROP_REASONS = {
    "infeasible": "it would have missed its deadline even in a batch of one",
    "deadline_exceeded_on_arrival": "the deadline had passed when it came",
    "deadline_exceeded_queued": "the deadline passed while it was queued",
    "deadline_exceeded_running": "the deadline passed while its batch ran",
    "shed": "the queue was full and a more urgent request took its place, or with `fair` one of another stream",
    "queue_full": "the queue was full",
    "closed": "it came after the stop",
}
"""Reasons of dropped requests, in words."""

_OTHER_REASON = "a reason that the policy gave"


@attrs.frozen(kw_only=True, eq=False, repr=False)
class DecisionLog:
    """Recent decisions of a batcher, and its counters since creation; made by ``batcher.decision_log()``.

    A snapshot: it never changes, and may be shared between threads. Instants are on the batcher's monotonic clock;
    entries are in order of time.

    Attributes:
        arrivals_ns: shape (n,), int64: when requests were queued, or arrived at a full queue.
        limits_ns: shape (n,), int64: time from the arrival to the deadline; 0: no deadline.
        priorities: shape (n,), int64; a lower number is more urgent.
        arrival_batches: shape (n,), int64: index of the request's batch in the arrays below; -1: none so far.
        batch_starts_ns: shape (batches,), int64; for a pipelined batch, the end of the previous one.
        batch_ends_ns: shape (batches,), int64; -1: it was still running.
        batch_expected_ns: shape (batches,), int64: its expected duration; 0: unknown.
        batch_workers: shape (batches,), int64: row in the timeline, the lowest that was free.
        batch_sizes: shape (batches,), int64.
        batch_queued: shape (batches,), int64: how many requests stayed in the queue.
        batch_ok: shape (batches,), bool: whether it succeeded.
        reasons: reason of each batch's release.
        drops_ns: shape (drops,), int64: when requests were rejected, shed, or reached their deadline. Requests that
            failed, were cancelled by their callers, or ended by a stop, are not drops.
        drop_counts: shape (drops,), int64: number of requests dropped at that instant, for that reason.
        drop_reasons: reason of each drop.
        released: how many batches were released since the batcher's creation, by reason.
        dropped: how many requests were dropped since then, by reason.
    """

    arrivals_ns: NDArray[np.int64]
    limits_ns: NDArray[np.int64]
    priorities: NDArray[np.int64]
    arrival_batches: NDArray[np.int64]
    batch_starts_ns: NDArray[np.int64]
    batch_ends_ns: NDArray[np.int64]
    batch_expected_ns: NDArray[np.int64]
    batch_workers: NDArray[np.int64]
    batch_sizes: NDArray[np.int64]
    batch_queued: NDArray[np.int64]
    batch_ok: NDArray[np.bool_]
    reasons: tuple[str, ...]
    drops_ns: NDArray[np.int64]
    drop_counts: NDArray[np.int64]
    drop_reasons: tuple[str, ...]
    released: dict[str, int]
    dropped: dict[str, int]

    @classmethod
    def of(cls, events: EventRing) -> Self:
        """Return a snapshot of an event ring; call it in the thread of the ring's event loop.

        Raises:
            TypeError: ``events`` is not an `EventRing`.
        """
        check_instance("events", events, EventRing, "an EventRing")
        return cls(**events.snapshot())

    @property
    def latest_ns(self) -> int:
        """Instant of the latest entry; 0 for an empty log."""
        parts = (self.arrivals_ns, self.batch_starts_ns, self.batch_ends_ns, self.drops_ns)
        return max((int(part.max()) for part in parts if part.size), default=0)

    def explain(self, latest: int = 5) -> str:
        """Return text that says why the latest batches were released and the latest requests dropped.

        Args:
            latest: number of batches, and of drops.

        Returns:
            Lines of text. Instants are milliseconds before the latest entry of the log.

        Raises:
            TypeError, ValueError: ``latest`` is not a whole number ≥ 1.
        """
        latest = check_count("latest", latest)
        lines = [f"{_plural(sum(self.released.values()), 'batch', 'batches')}: {_counted(self.released)}"]
        lines += [self._describe_batch(at) for at in range(max(0, len(self.reasons) - latest), len(self.reasons))]
        lines.append(f"{_requests(sum(self.dropped.values()))} dropped: {_counted(self.dropped)}")
        entries = len(self.drop_reasons)
        lines += [self._describe_drop(at) for at in range(max(0, entries - latest), entries)]
        return "\n".join(lines)

    def plot(self, ax: Any = None, *, last_s: float | None = None) -> Any:
        """Draw the timeline: a row per worker, a bar per batch colored by its reason, ticks of arrivals and drops.

        A bar that is wide enough shows the number of requests in the batch. Failed batches are hatched. Running batches
        end at the log's latest entry and have a dashed frame. Seconds count from the first entry drawn.

        Args:
            ax: a matplotlib ``Axes`` to draw on; ``None``: a new figure.
            last_s: draw only the last seconds before the latest entry; ``None``: everything.

        Returns:
            The axes.

        Raises:
            TypeError, ValueError: ``last_s`` is not a number of seconds > 0.
            MissingExtra: matplotlib is not installed (``pip install 'streaminfer[plot]'``).
        """
        latest_ns = self.latest_ns
        running = self.batch_ends_ns < 0
        ends_ns = np.where(running, latest_ns, self.batch_ends_ns)
        from_ns = -1 if last_s is None else latest_ns - check_duration_ns("last_s", last_s, positive=True)
        drawn = ends_ns >= from_ns
        starts_ns, ends_ns = self.batch_starts_ns[drawn], ends_ns[drawn]
        arrivals_ns = self.arrivals_ns[self.arrivals_ns >= from_ns]
        drops_ns = self.drops_ns[self.drops_ns >= from_ns]
        zero_ns = min((int(part.min()) for part in (starts_ns, arrivals_ns, drops_ns) if part.size), default=0)
        return draw_timeline(
            ax,
            purpose="DecisionLog.plot",
            starts_s=(starts_ns - zero_ns) / 1e9,
            ends_s=(ends_ns - zero_ns) / 1e9,
            workers=self.batch_workers[drawn],
            sizes=self.batch_sizes[drawn],
            reasons=tuple(reason for reason, is_drawn in zip(self.reasons, drawn.tolist(), strict=True) if is_drawn),
            rows=int(self.batch_workers.max(initial=-1)) + 1,
            arrivals_s=(arrivals_ns - zero_ns) / 1e9,
            drops_s=(drops_ns - zero_ns) / 1e9,
            failed=(~self.batch_ok & ~running)[drawn],
            running=running[drawn],
        )

    def to_perfetto(self, path: str | os.PathLike[str], *, slo: "SLO | None" = None) -> None:
        """Write a trace for https://ui.perfetto.dev, which reads it in the browser.

        It has a track per worker with a slice per batch, arrows from requests to their batch, the dropped requests, and
        two counters: the length of the queue, and the burn rate of the error budget.

        Args:
            path: path of the file, which is replaced.
            slo: an objective on the same clock, for the burn rate; ``None``: an objective of 99 % for the log's own
                requests, which are bad events if they fail or miss their deadline.

        Raises:
            OSError: the file cannot be written.
        """
        from streaminfer.simulation.perfetto_trace import perfetto_trace  # noqa: PLC0415 - loaded at the first trace

        write_whole(path, perfetto_trace(self, slo))

    def to_trace(self) -> Trace:
        """Return the arrivals as a `Trace`, to simulate them with other settings.

        The log may begin in the middle of a burst: requests that were already queued then are not part of the trace.
        """
        order = np.argsort(self.arrivals_ns, kind="stable")
        arrivals_ns, limits_ns = self.arrivals_ns[order], self.limits_ns[order]
        # subtract first: float64 would round the instants of a clock that has run for months
        return Trace(
            (arrivals_ns - arrivals_ns[:1]) / 1e9,
            np.where(limits_ns > 0, limits_ns / 1e9, np.inf),
            self.priorities[order],
        )

    def _describe_batch(self, at: int) -> str:
        reason, start_ns, end_ns = self.reasons[at], self.batch_starts_ns[at], self.batch_ends_ns[at]
        if end_ns < 0:
            outcome = "still running"
        else:
            outcome = f"{'took' if self.batch_ok[at] else 'no answers after'} {(end_ns - start_ns) / 1e6:.1f} ms"
        return (
            f"{self._relative_time(start_ns)} worker {self.batch_workers[at]}: {_requests(self.batch_sizes[at])}, "
            f"{self.batch_queued[at]} left queued, {outcome}. {reason}: {RELEASE_REASONS.get(reason, _OTHER_REASON)}"
        )

    def _describe_drop(self, at: int) -> str:
        reason = self.drop_reasons[at]
        words = DROP_REASONS.get(reason, _OTHER_REASON)
        return f"{self._relative_time(self.drops_ns[at])} {_requests(self.drop_counts[at])} dropped. {reason}: {words}"

    def _relative_time(self, instant_ns: Any) -> str:
        return f"  {(int(instant_ns) - self.latest_ns) / 1e6:9.1f} ms"

    def __repr__(self) -> str:
        return (
            f"<DecisionLog of the last {self.arrivals_ns.size} arrivals, {len(self.reasons)} batches and "
            f"{int(self.drop_counts.sum())} drops>"
        )

    def _repr_html_(self) -> str:
        sizes, reasons = self.batch_sizes, np.array(self.reasons, dtype=object)
        rows = [
            (
                "batches",
                reason,
                count,
                f"{sizes[reasons == reason].mean():.1f}" if (reasons == reason).any() else "",
                RELEASE_REASONS.get(reason, _OTHER_REASON),
            )
            for reason, count in _most_first(self.released)
        ]
        rows += [
            ("drops", reason, count, "", DROP_REASONS.get(reason, _OTHER_REASON))
            for reason, count in _most_first(self.dropped)
        ]
        head = ("", "reason", "since the start", "recent mean size", "because")
        return inline_svg(self.plot, f"Timeline: {self!r}") + html_table(rows, head=head, caption=repr(self))


def _requests(count: Any) -> str:
    return _plural(count, "request", "requests")


def _plural(count: Any, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _most_first(counters: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counters.items(), key=lambda item: -item[1])


def _counted(counters: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in _most_first(counters)) or "none"
