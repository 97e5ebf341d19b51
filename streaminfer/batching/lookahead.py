"""`Lookahead`: the batch that the best plan for the present and the near future would send now.

At each decision for a free worker:

1. If all that waits, cut into full batches in deadline order, is on time, the first of these batches goes: no plan
   can do better, and this is the common case (one compiled pass over the queue).
2. Otherwise requests that even a batch of one would answer late are refused at once, and the planner (``kernels``)
   chooses the batch: the exact dynamic program over what waits and the arrivals expected at the present rate where
   all requests have about the same time limit, a heuristic that plays candidates forward where they have not.
3. When nothing at all can be on time, the newest request is served as a probe: a learned time that has become wrong is
   so unlearned, where refusing everything would never measure again.

Batches are never larger than the size of best throughput, but for one that is tried now and then
(:mod:`~streaminfer.batching.lane`). With several priorities waiting, the most urgent that fit are
put into the planned batch first, and the batch is made small enough for the most urgent of them. A request without a
deadline stands in the order where one with a second's patience would, and is never refused.

Requests of different length buckets do not share a batch, but where a mask tells the model what is padding and one
batch of the longest bucket is on time and takes no longer than several. Where several buckets wait, all of them are
checked as in 1, batch by batch in the order of their first deadlines; otherwise the kernels choose the bucket by
playing what waits forward, and the batch within it as above, as if its share of the arrivals were all there is.

*Ahead.* Where the model keeps a queue, a full batch is sent a little before the one that runs ends
(:mod:`~streaminfer.batching.hand_over`), chosen for the instant at which that one is thought to end. Plans do not count
on it: what they know of the batches behind is what each takes by itself.

Exact: one worker, one bucket, uniform time limits, service times as given, at most 16 dropped, at most 256 waiting.
Beyond that it is a heuristic. With several workers it plans as if their batches started evenly spread, one every
``t(b) / workers``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching import kernel_loader
from streaminfer.batching._order_cy import Timetable, fill_deadlines
from streaminfer.batching._queue_cy import RequestQueue
from streaminfer.batching._ticket_cy import NEVER, Ticket
from streaminfer.batching.hand_over import HandOver
from streaminfer.batching.lane import Lane
from streaminfer.batching.policy import Decision
from streaminfer.batching.service_time import best_size

__all__ = ["Lookahead"]

_PATIENCE_NS = 1_000_000_000
_LEISURE = 4
"""Sizes are tried while all could wait for so many full batches more."""
_WORTH = 1.5
"""A batch of twice the best size takes so many times as long, at most, where it is worth it."""
_UNIFORM = 0.05
"""Time limits that differ by no more than this share are about equal."""

_MAX_DROPS = 16
"""The exact plan drops at most so many requests."""

_NOTHING = Decision()

_Array = NDArray[np.int64]
_new_decision: Callable[[type[Decision], tuple[Any, ...]], Decision] = tuple.__new__


class Lookahead:
    """The planning policy; synchronous, takes the time as an argument, belongs to one queue.

    Args:
        max_batch_size: the cap.
        service_time: a `ServiceTime` that is taken as it is, or a learned one, which then learns from :meth:`finished`;
            with length buckets a sequence of these, one for each bucket.
        workers: how many batches may run at once.
        caps: with length buckets, the largest batch of each; ``None``: ``max_batch_size``.
        lengths: with length buckets, their lengths: a bucket of which nothing is known yet is thought to take what the
            nearest known one takes, in proportion to the length where it is longer.
        padded: what a batch of a size is padded to before the model sees it; ``None``: nothing.
        masked: with length buckets, that a row may be padded to a longer bucket than its own.
        hand_over: what is known of the way to the model and back; ``None``: nothing.
    """

    def __init__(
        self,
        max_batch_size: int,
        service_time: Any,
        *,
        workers: int = 1,
        caps: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
        padded: Callable[[int], int] | None = None,
        masked: bool = False,
        hand_over: HandOver | None = None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.service_time = service_time
        models = service_time if isinstance(service_time, Sequence) else [service_time]
        self._lanes = [
            Lane(cap, model, workers=workers, padded=padded)
            for cap, model in zip(caps or [max_batch_size] * len(models), models, strict=True)
        ]
        self._lane = self._lanes[0] if len(self._lanes) == 1 else None
        self._lengths = lengths
        self._masked = masked
        self._hand_over = HandOver() if hand_over is None else hand_over

    def prepare(self, *, wait: bool) -> bool:
        """Load the kernels before the first decision that needs them.

        Args:
            wait: block until they are there, for seconds where none were compiled ahead of time. Otherwise only load
                those that were.

        Returns:
            Whether they are there.

        Raises:
            MissingExtra: there are none, and Numba, which would compile them, is not installed.
        """
        if not wait and not kernel_loader.is_compiled_ahead():
            return False
        kernel_loader.prepare()
        return True

    def finished(self, size: int, duration_ns: int, now_ns: int, cut_short: bool = False, bucket: int = 0) -> int:
        """Learns from a batch.

        Args:
            size: how many requests it had.
            duration_ns: how long the worker was busy with it.
            now_ns: when it ended.
            cut_short: it was cancelled then and would have taken longer: learned from if that is longer than was
                thought.
            bucket: which bucket its requests belong to.

        Returns:
            The instant before which nothing more is learned.
        """
        if not cut_short:
            self._hand_over.alone(size, duration_ns)
        return self._observe(self._lanes[bucket], size, duration_ns, now_ns, cut_short)

    def finished_ahead(self, size: int, busy_ns: int, now_ns: int, early_ns: int, bucket: int = 0) -> int:
        """Learns from a batch that was sent ahead.

        Args:
            size: how many requests it had.
            busy_ns: from the end of the batch before to its own.
            now_ns: when it ended.
            early_ns: how long before the end of the one before it was sent.
            bucket: which bucket its requests belong to.

        Returns:
            As :meth:`finished`.
        """
        duration_ns = self._hand_over.ahead(size, busy_ns, early_ns)
        return self._observe(self._lanes[bucket], size, duration_ns, now_ns, cut_short=False)

    def _observe(self, lane: Lane, size: int, duration_ns: int, now_ns: int, cut_short: bool) -> int:
        if now_ns >= lane.learns_again_ns:
            lane.observe(size, duration_ns, now_ns, cut_short)
        return lane.learns_again_ns if lane is self._lane else min(lane.learns_again_ns for lane in self._lanes)

    def decide(self, waiting: RequestQueue, now_ns: int, free_workers: int) -> Decision:  # noqa: ARG002 - the protocol
        """The next batch for one free worker."""
        lane = self._lane
        if lane is None:
            return self._decide_between(waiting, now_ns)
        table = lane.timetable
        if table is None:  # nothing was ever measured: what waits is the best first measurement
            return Decision(waiting.first(lane.cap), "first_measurement")
        batch = waiting.batch_if_all_on_time(table, now_ns)
        if batch is not None:
            if len(batch) >= table.cap:
                size = lane.size_to_try(now_ns, waiting.waiting, smaller=True)
                if size and _all_on_time_behind(size, lane, waiting, now_ns):
                    return Decision(waiting.first(size), "trying")
            # the common case: a tuple made outright takes half as long
            return _new_decision(
                Decision, (batch, "full" if len(batch) >= table.cap else "idle_worker", (), None, False, "")
            )
        return self._decide_for_late(waiting, lane, table, now_ns)

    def ahead(self, waiting: RequestQueue, now_ns: int, running: Sequence[tuple[int, int]]) -> Decision:
        """The batch to send before a worker is free, to a model that keeps a queue.

        Args:
            waiting: what waits.
            now_ns: the present instant.
            running: the turn of each running batch, and how many requests it has; none of them was sent ahead of a
                turn that has not come.

        Returns:
            A full batch, and what cannot be saved behind it; or nothing, and perhaps when to look again. Requests of
            several length buckets are not sent ahead.
        """
        lane, table = self._lane, None if self._lane is None else self._lane.timetable
        if lane is None or table is None:
            return _NOTHING
        if waiting.waiting < table.cap:
            return _NOTHING
        ends_ns, size = min([(table.ends_ns(turn_ns, size), size) for turn_ns, size in running])
        if size > table.cap:  # it was tried, and when it ends is a guess
            return _NOTHING
        band_ns = max(int(lane.durations[size]) - lane.expected_ns(size), 0)
        from_ns, until_ns = self._hand_over.window_ns(ends_ns, band_ns)
        if now_ns < from_ns <= until_ns:
            return Decision(look_again_ns=from_ns)
        if now_ns > until_ns:
            return _NOTHING
        decision = self.decide(waiting, self._hand_over.turn_ns(now_ns, ends_ns), 0)
        full = len(decision.batch) >= table.cap and decision.reason != "probe"
        return decision if full or decision.reason == "trying" else _NOTHING

    @property
    def full_size(self) -> int:
        """How many must wait for a batch to be sent ahead."""
        return self.max_batch_size if self._lane is None else len(self._lane.durations) - 1

    def turn_ns(self, sent_ns: int, ended_ns: int) -> int:
        """From when on a batch that was sent ahead counts as running, now that the one before has ended."""
        return self._hand_over.turn_ns(sent_ns, ended_ns)

    def predicted_finish_ns(
        self,
        waiting: RequestQueue,
        now_ns: int,
        running: Sequence[tuple[int, int]],
        bucket: int = 0,
        ahead: int = 0,
    ) -> int | None:
        """When a request that came now would be answered, served in full batches behind all that waits.

        That batches behind may be sent ahead is not counted on: it may be answered by so many hand-overs earlier.

        Args:
            waiting: what waits.
            now_ns: the present instant.
            running: where no worker is free, the turn of each running batch and how many requests it has.
            bucket: of the request; -1: unknown, taken to be the longest. What waits and runs is taken to be of it too.
            ahead: how many requests the batch has that was sent ahead; 0: there is none.

        Returns:
            The instant; ``None`` before anything was measured.
        """
        table = self._lanes[bucket].timetable
        if table is None:
            return None
        start_ns = now_ns
        if running:
            ends_ns = sorted([table.ends_ns(turn_ns, size) for turn_ns, size in running])
            if ahead:
                ends_ns[0] = table.ends_ns(self._hand_over.turn_ns(now_ns, ends_ns[0]), ahead)
            start_ns = max(now_ns, min(ends_ns))
        return int(table.answered_ns(waiting.waiting, start_ns))

    def _decide_for_late(self, waiting: RequestQueue, lane: Lane, table: Timetable, now_ns: int) -> Decision:
        """The next batch where what waits, as it stands, is not all on time."""
        tickets, deadlines = _in_order(waiting.first(waiting.waiting), now_ns)
        if table.all_on_time(deadlines, now_ns):
            return Decision(tickets[: table.cap], "full" if len(tickets) >= table.cap else "idle_worker")
        doomed = int(np.searchsorted(deadlines, now_ns + lane.durations[1]))
        if doomed == len(tickets):
            return _probe(tickets, lane)
        batch, reason = self._plan(waiting, lane, tickets[doomed:], deadlines[doomed:], now_ns, 1.0)
        return Decision(batch, reason, tickets[:doomed], refusal=_too_late(lane))

    def _plan(
        self,
        waiting: RequestQueue,
        lane: Lane,
        tickets: list[Ticket],
        deadlines: _Array,
        now_ns: int,
        share: float,
    ) -> tuple[list[Ticket], str]:
        """The batch to send, of tickets of one lane in deadline order, none of which is late alone, and why."""
        size = 0 if waiting.several_priorities else lane.size_to_try(now_ns, len(tickets), smaller=False)
        if size:
            head = int(np.searchsorted(deadlines, now_ns + _WORTH * int(lane.durations[-1])))
            if len(tickets) - head >= size:
                return tickets[head : head + size], "trying"
        head, size = self._choose(waiting, lane, deadlines, now_ns, share)
        if waiting.several_priorities:
            return _urgent_first(tickets, deadlines, lane.durations, now_ns, size), "planned"
        return tickets[head : head + size], "planned"

    def _choose(
        self, waiting: RequestQueue, lane: Lane, deadlines: _Array, now_ns: int, share: float
    ) -> tuple[int, int]:
        limits = np.array(waiting.journal.recent_limits_ns() or [_PATIENCE_NS], np.int64)
        shortest, longest = int(limits.min()), int(limits.max())
        durations, steps = lane.durations, lane.steps
        if durations[-1] > longest:  # of the sizes that nobody has the time for, none is the best
            feasible = max(1, int(np.searchsorted(durations, longest, side="right")) - 1)
            best = best_size(durations[: feasible + 1].astype(np.float64))
            durations, steps = durations[: best + 1], steps[: best + 1]
        head, size = kernel_loader.load().choose(
            now_ns,
            deadlines,
            durations,
            steps,
            limits,
            waiting.journal.gap_ns(now_ns) / share,
            longest - shortest <= _UNIFORM * longest,
            _MAX_DROPS,
        )
        return int(head), int(size)

    def _decide_between(self, waiting: RequestQueue, now_ns: int) -> Decision:
        """The next batch where buckets wait that do not share one."""
        groups: list[list[Ticket]] = [[] for _ in self._lanes]
        for ticket in waiting.first(waiting.waiting):
            groups[ticket.bucket].append(ticket)
        unknown = self._borrow_tables()
        if unknown:
            bucket = waiting.first(1)[0].bucket
            return Decision(groups[bucket][: self._lanes[bucket].cap], "first_measurement")
        ordered = [_in_order(group, now_ns) if group else (group, np.zeros(0, np.int64)) for group in groups]
        if self._masked:
            together = _in_one_batch(self._lanes, ordered, now_ns)
            if together:
                return Decision(together, "idle_worker", shorter_too=True)
        batch = _all_on_time(self._lanes, ordered, now_ns)
        if batch is not None:
            bucket, size = batch
            full = size >= len(self._lanes[bucket].durations) - 1
            return Decision(ordered[bucket][0][:size], "full" if full else "idle_worker")
        doomed: list[Ticket] = []
        late = self._lanes[-1]
        for bucket, lane in enumerate(self._lanes):
            tickets, deadlines = ordered[bucket]
            passed = int(np.searchsorted(deadlines, now_ns + lane.durations[1]))
            if passed:
                late = lane
                doomed += tickets[:passed]
                ordered[bucket] = tickets[passed:], deadlines[passed:]
        left = sum(len(tickets) for tickets, _ in ordered)
        if not left:
            return _probe(doomed, late)
        bucket = self._choose_lane(ordered, now_ns)
        tickets, deadlines = ordered[bucket]
        chosen, reason = self._plan(waiting, self._lanes[bucket], tickets, deadlines, now_ns, len(tickets) / left)
        return Decision(chosen, reason, doomed, refusal=_too_late(late))

    def _choose_lane(self, ordered: list[tuple[list[Ticket], _Array]], now_ns: int) -> int:
        lanes = self._lanes
        longest = max(lane.durations.size for lane in lanes)
        durations = np.ones((len(lanes), longest), np.int64)
        steps = np.ones((len(lanes), longest), np.int64)
        for bucket, lane in enumerate(lanes):
            durations[bucket, : lane.durations.size] = lane.durations
            steps[bucket, : lane.steps.size] = lane.steps
        offsets = np.cumsum([0, *(deadlines.size for _, deadlines in ordered)])
        caps = np.array([lane.durations.size - 1 for lane in lanes])
        deadlines = np.concatenate([deadlines for _, deadlines in ordered])
        return int(kernel_loader.load().choose_lane(now_ns, deadlines, offsets, caps, durations, steps))

    def _borrow_tables(self) -> bool:
        """Gives lanes of which nothing is known what the nearest known lane takes.

        Returns:
            Whether nothing is known of any lane.
        """
        known = [bucket for bucket, lane in enumerate(self._lanes) if not lane.learns or lane.service_time.known]
        if not known:
            return True
        lengths = self._lengths or range(1, len(self._lanes) + 1)
        for bucket, lane in enumerate(self._lanes):
            if bucket not in known:
                nearest = min(known, key=lambda other, bucket=bucket: abs(other - bucket))  # type: ignore[misc]
                lane.borrow(self._lanes[nearest], max(1.0, lengths[bucket] / lengths[nearest]))
        return False

    def __repr__(self) -> str:
        return f"Lookahead({self.max_batch_size}, {self.service_time!r})"


def _in_order(tickets: list[Ticket], now_ns: int) -> tuple[list[Ticket], _Array]:
    """The tickets by deadline, and the deadlines."""
    deadlines = np.empty(len(tickets), np.int64)
    if not fill_deadlines(tickets, deadlines, _PATIENCE_NS, now_ns):
        order = np.argsort(deadlines, kind="stable")
        tickets = [tickets[position] for position in order.tolist()]
        deadlines = deadlines[order]
    return tickets, deadlines


def _all_on_time_behind(size: int, lane: Lane, waiting: RequestQueue, now_ns: int) -> bool:
    """Whether a batch of a size that is tried, and all behind it, have time to spare, though more should come."""
    table = lane.timetable
    best = len(lane.durations) - 1
    takes_ns = int(_WORTH * lane.durations[-1]) if size > best else int(lane.durations[size])
    takes_ns += _LEISURE * int(lane.durations[-1])
    tickets = waiting.first(waiting.waiting)
    if tickets[0].deadline_ns == NEVER:  # and so has none behind it: they stand in the order of deadlines
        return True
    deadlines = _in_order(tickets, now_ns)[1]
    return (
        table is not None
        and now_ns + takes_ns <= int(deadlines[0])
        and table.all_on_time(deadlines[size:], now_ns + takes_ns)
    )


def _in_one_batch(lanes: list[Lane], ordered: list[tuple[list[Ticket], _Array]], now_ns: int) -> list[Ticket]:
    """All that waits, the longest first, where one batch of the longest bucket is on time and as fast as several.

    Returns:
        Nothing where it is not, or where only one bucket waits.
    """
    waiting = [bucket for bucket, (tickets, _) in enumerate(ordered) if tickets]
    longest = lanes[waiting[-1]]
    size = sum(len(ordered[bucket][0]) for bucket in waiting)
    if len(waiting) == 1 or size >= longest.durations.size:
        return []
    together_ns = int(longest.durations[size])
    apart_ns = sum(
        int(lanes[bucket].durations[min(len(ordered[bucket][0]), lanes[bucket].durations.size - 1)])
        for bucket in waiting
    )
    if together_ns > apart_ns or now_ns + together_ns > min(int(ordered[bucket][1][0]) for bucket in waiting):
        return []
    return [ticket for bucket in reversed(waiting) for ticket in ordered[bucket][0]]


def _all_on_time(lanes: list[Lane], ordered: list[tuple[list[Ticket], _Array]], now_ns: int) -> tuple[int, int] | None:
    """The bucket and size of the first batch, if all full batches, in the order of first deadlines, are on time."""
    batches: list[tuple[int, int, int]] = []
    for bucket, (_, deadlines) in enumerate(ordered):
        cap = lanes[bucket].durations.size - 1
        firsts = deadlines[::cap].tolist()
        batches += [
            (deadline_ns, bucket, min(cap, deadlines.size - number * cap)) for number, deadline_ns in enumerate(firsts)
        ]
    batches.sort()
    time_ns = now_ns
    for deadline_ns, bucket, size in batches:
        if time_ns + int(lanes[bucket].durations[size]) > deadline_ns:
            return None
        time_ns += int(lanes[bucket].steps[size])
    return batches[0][1], batches[0][2]


def _probe(tickets: list[Ticket], lane: Lane) -> Decision:
    """Nothing can be on time: the newest is served to see whether that is true."""
    newest = max(tickets, key=lambda ticket: ticket.enqueued_ns)
    return Decision([newest], "probe", [ticket for ticket in tickets if ticket is not newest], refusal=_too_late(lane))


def _too_late(lane: Lane) -> str:
    return f"late_alone: even a batch of one takes {int(lane.durations[1]) / 1e9:.6f} s"


def _largest_on_time(left_ns: int, durations: _Array, available: int) -> int:
    """The largest batch that takes no longer than ``left_ns``, at least 1."""
    return max(1, min(available, int(np.searchsorted(durations, left_ns, side="right")) - 1))


def _urgent_first(tickets: list[Ticket], deadlines: _Array, durations: _Array, now_ns: int, size: int) -> list[Ticket]:
    """A batch of about the planned size that takes the most urgent requests that are on time in it."""
    priority = min(ticket.priority for ticket in tickets)
    most_urgent = next(position for position, ticket in enumerate(tickets) if ticket.priority == priority)
    fits = _largest_on_time(int(deadlines[most_urgent]) - now_ns, durations, len(tickets))
    size = min(size, fits)
    finish_ns = now_ns + int(durations[size])
    on_time = [
        ticket for ticket, deadline_ns in zip(tickets, deadlines.tolist(), strict=True) if deadline_ns >= finish_ns
    ]
    on_time.sort(key=lambda ticket: ticket.priority)
    return on_time[:size]
