"""The planning policy: sends the first batch of the best plan for the present and the near future.

*Design.* At each decision for a free worker:

1. If all queued requests, cut into full batches in deadline order, are on time, the policy sends the first of these
   batches. No plan can do better, and this is the common case: one compiled pass over the queue. If callers
   return together, several free workers share the queue: see ``DurationTable.share_of_worker``.
2. Otherwise :mod:`~streaminfer.batching.planner.group_plan` chooses with the kernels. If time limits are about equal,
   they solve an exact dynamic program over the queued requests and the expected arrivals. If time limits differ, they
   play candidates forward.
3. A batch is planned with *mean* durations. A request is rejected only if it surely misses its deadline: its time left
   is below the shortest duration of a batch of one (at most 0.7 of a learned mean), or below the mean if more requests
   are queued than a batch holds. A request that is merely predicted to be late is passed over and stays queued. Under
   overload some requests are lost in any case; the planner then prefers those that are on time even in a slow batch.
4. The queue is sent as one batch, a *probe*, in two cases. Either not even a new request could be on time, given the
   time limits of the last five seconds; or a shared device was busy with other models for a second, and no request
   could be on time. A probe corrects a wrong duration; rejecting everything would never measure again. The probe has
   the requests with the most time left, like a batch that explores a size, because a batch whose requests have all
   expired is cancelled and measures nothing.

*Without a deadline.* Such requests fill batches after all others. Once they have been queued for two seconds, they get
a share of every batch that equals their share of the queue. Requests that cannot share these batches get as many rows
in batches of their own.

*Groups.* Requests of different length buckets, or of shapes that cannot be stacked, do not share a batch. Each group is
planned separately. The kernels choose the group to serve by playing the queue forward, and send the batch that they
played, because a plan of one group alone would not count the time of the others. Of several classes, only the most
urgent one is played. If a mask tells the model what is padding, one batch of the longest bucket replaces several
batches that would take as long.

*Pipelining.* If the model has a queue, a full batch is sent a little before the running one ends
(:mod:`~streaminfer.batching.planner.pipelining`), chosen for the instant at which that one is expected to end.

*Invariants.* A batch is never larger than the size of best throughput, except to explore an unknown size. A worker
is never idle while a queued request can be on time. The plan is exact for one worker, one group, one class, uniform
time limits, durations without noise, at most 16 drops and 256 queued requests; otherwise it is a heuristic. Several
workers are planned as if their batches started evenly spread, one every ``t(b) / workers``.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from streaminfer.batching.planner import kernel_loader
from streaminfer.batching.planner.batch_groups import (
    PATIENCE_NS,
    Group,
    batch_to_compare,
    first_groups,
    first_if_all_on_time,
    in_deadline_order,
    in_one_batch,
    with_rows_for_free,
    without_late,
)
from streaminfer.batching.planner.bucket_model import BucketModel, lend_durations
from streaminfer.batching.planner.group_plan import choose_group, plan_batch
from streaminfer.batching.planner.outlook import Outlook
from streaminfer.batching.planner.pipelining import PipelineOverhead
from streaminfer.batching.policy import Decision
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import Ticket

__all__ = ["Lookahead"]

_UNMIXED_AFTER = 64
"""Decisions with a single group after which the policy stops comparing shapes."""
_PROBE_INTERVAL_NS = 5_000_000_000
"""Requests with enough time measure the model if they come this often; otherwise one that seems late must do it."""
_UNMEASURED_NS = 1_000_000_000
"""Longest time without a batch while requests arrive that would be on time if they were served at once."""

_NOTHING = Decision()

_new_decision: Callable[[type[Decision], tuple[Any, ...]], Decision] = tuple.__new__


class Lookahead:
    """Policy that plans for most requests on time.

    Synchronous, takes the time as an argument, belongs to one queue. Not thread-safe.

    Args:
        max_batch_size: the largest batch.
        service_time: a `ServiceTime`, which is exact, or a `LearnedServiceTime`, which learns from :meth:`observe`;
            with length buckets a sequence of these, one per bucket.
        workers: how many batches may run at once.
        caps: with length buckets, the largest batch of each; ``None``: ``max_batch_size``.
        lengths: with length buckets, their lengths. An unknown bucket is expected to take as long as the nearest known
            one; a longer bucket takes longer in proportion to its length.
        padded: the number of rows that the model gets for a batch of a size; ``None``: the size.
        masked: with length buckets, whether a row may be padded to a longer bucket than its own.
        kind_of: returns equal keys for shapes that can be stacked; ``None``: all can.
        overhead: the learned overhead that pipelining hides; ``None``: unknown.

    Attributes:
        bucket_models: known durations, by bucket.
        skip: whether a batch need not be learned, as `BatchSampler.skip_execution`; ``None`` with several buckets.
    """

    patience_ns = PATIENCE_NS

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
        kind_of: Callable[[Any], Hashable] | None = None,
        overhead: PipelineOverhead | None = None,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.service_time = service_time
        models = service_time if isinstance(service_time, Sequence) else [service_time]
        self.bucket_models = [
            BucketModel(cap, model, workers=workers, padded=padded)
            for cap, model in zip(caps or [max_batch_size] * len(models), models, strict=True)
        ]
        self._model = self.bucket_models[0] if len(self.bucket_models) == 1 else None
        self.skip = None if self._model is None else self._model.sampler.skip_execution
        self._lengths = lengths
        self._masked = masked
        self._kind_of = kind_of
        self._mixed_for = 0  # decisions for which the policy still compares shapes
        self._overhead = PipelineOverhead() if overhead is None else overhead
        self._probe_size = max_batch_size  # halved after each cancelled batch, so that one of them ends in time
        self._measuring_ns: int | None = None  # when a batch was last sent before anything was measured
        self._exploring: tuple[BucketModel, Ticket] | None = None  # model and first ticket of the last such batch
        self._row_credit = self._previous_credit = 0.0  # rows due to requests without a deadline
        self._proposed: Ticket | None = None  # first ticket of the batch for which these rows were last counted

    def prepare(self, *, wait: bool) -> bool:
        """Load the kernels before the first decision that needs them.

        Args:
            wait: block until they are loaded, for seconds if Numba has to compile them. Otherwise load them only if no
                compilation is necessary.

        Returns:
            Whether they are loaded.

        Raises:
            MissingExtra: no kernels were compiled ahead of time, and Numba is not installed.
        """
        kernel_loader.check()
        if not wait and not kernel_loader.is_ready():
            return False
        kernel_loader.prepare()
        return True

    # -- learning -----------------------------------------------------------------------------------------------

    def observe(self, size: int, duration_ns: int, now_ns: int, cancelled: bool = False, bucket: int = 0) -> None:
        """Learn from a batch.

        Args:
            size: number of its rows.
            duration_ns: how long the worker was busy with it.
            now_ns: when it ended.
            cancelled: the batch was cancelled at ``now_ns``, so the duration is a lower bound.
            bucket: the bucket of its requests.
        """
        if cancelled:
            self._probe_size = max(size // 2, 1)
        else:
            self._probe_size = max(self._probe_size, 2 * size)
            self._overhead.observe_alone(size, duration_ns)
        self.bucket_models[bucket].observe(size, duration_ns, now_ns, cancelled)

    def observe_pipelined(self, size: int, busy_ns: int, now_ns: int, early_ns: int, bucket: int = 0) -> None:
        """Learn from a batch that was sent before the previous one had ended.

        Args:
            size: number of its rows.
            busy_ns: from the end of the previous batch to its own end.
            now_ns: when it ended.
            early_ns: how long before the end of the previous batch it was sent.
            bucket: the bucket of its requests.
        """
        duration_ns = self._overhead.observe_pipelined(size, busy_ns, early_ns)
        self.bucket_models[bucket].observe(size, duration_ns, now_ns, cancelled=False)

    def mixed(self) -> None:
        """Compare shapes from now on, because the rows of a chosen batch could not be stacked."""
        self._mixed_for = _UNMIXED_AFTER

    def limit_rows(self, bucket: int, most: int) -> None:
        """Plan batches of a bucket with at most so many rows from now on, because more exceed the memory."""
        self.bucket_models[bucket].limit_rows(most)

    # -- decisions ----------------------------------------------------------------------------------------------

    def decide(self, queue: RequestQueue, now_ns: int, free_workers: int) -> Decision:
        """Return the next batch for one free worker: its share, if several may share the queue."""
        if self._exploring is not None or self._proposed is not None:
            self._take_back()
        model = self._model
        if model is not None and not self._mixed_for:
            table = model.timetable
            if table is None:  # no batch was measured yet
                return Decision(self._first_to_measure(queue, now_ns, model.cap), "exploration")
            if (batch := queue.batch_if_all_on_time(table, now_ns)) is not None:
                if free_workers > 1 and table.is_shortly_after(queue.events.last_end_ns, now_ns, len(batch)):
                    batch = batch[: table.share_of_worker(queue.queued, free_workers)]
                if len(batch) >= model.compared_from and (size := model.size_instead_of(len(batch), queue.queued)):
                    group = in_deadline_order(model, queue.first(queue.queued))
                    return self._send_on_time(group, batch, size, [group], now_ns)
                # the common case: creating the tuple directly takes half the time
                reason = "full" if len(batch) >= table.cap else "idle_worker"
                return _new_decision(Decision, (batch, reason, (), None, False, ""))
        return self._decide_for_late(queue, now_ns)

    def _take_back(self) -> None:
        """Undo the counts of the last decision if its batch was not sent, because another model had the device."""
        if self._exploring is not None and self._exploring[1].state == "queued":
            self._exploring[0].compare_next()
        if self._proposed is not None and self._proposed.state == "queued":
            self._row_credit = self._previous_credit
        self._exploring = self._proposed = None

    def choose_pipelined(self, queue: RequestQueue, now_ns: int, running: Sequence[tuple[int, int]]) -> Decision:
        """Return the batch to send before a worker is free, to a model with a queue.

        Args:
            queue: the queued requests.
            now_ns: the present instant.
            running: effective start and rows of each running batch; none of them was sent early and still waits for
                its predecessor.

        Returns:
            A full batch, and the requests to reject because they would be late after the running one; or no batch, with
            the instant to decide again if there is one. Requests of several groups are not sent early.
        """
        model, table = self._model, None if self._model is None else self._model.upper_timetable
        if model is None or table is None or self._mixed_for or queue.queued < table.cap:
            return _NOTHING
        ends_ns, size = min([(table.ends_ns(effective_start_ns, size), size) for effective_start_ns, size in running])
        if size > table.cap:  # it explores, so its end is a guess
            return _NOTHING
        band_ns = int(model.upper[size]) - model.expected_ns(size)
        from_ns, until_ns = self._overhead.window_ns(ends_ns, band_ns)
        if now_ns < from_ns <= until_ns:
            return Decision(recheck_ns=from_ns)
        if now_ns > until_ns:
            return _NOTHING
        decision = self.decide(queue, self._overhead.effective_start_ns(now_ns, ends_ns), 0)
        if decision.reject:  # enough time for a batch may be left, but not after the running one
            decision = decision._replace(rejection=f"{decision.rejection}, behind the one that runs")
        full = len(decision.batch) >= table.cap and decision.reason != "probe"
        return decision if full or decision.reason == "exploration" else _NOTHING

    @property
    def full_size(self) -> int:
        """Number of queued requests from which a batch is sent early."""
        return self.max_batch_size if self._model is None else len(self._model.durations) - 1

    def effective_start_ns(self, sent_ns: int, ended_ns: int) -> int:
        """Return the instant from which a batch that was sent early counts as running, at its predecessor's end."""
        return self._overhead.effective_start_ns(sent_ns, ended_ns)

    def expected_ns(self, size: int, bucket: int = 0) -> int:
        """Return the expected duration of a batch of ``size`` rows; 0 before anything was measured."""
        model = self.bucket_models[bucket]
        table = model.timetable
        if table is None:
            return 0
        return table.ends_ns(0, size) if size <= table.cap else model.expected_ns(size)

    def predicted_finish_ns(
        self,
        queue: RequestQueue,
        now_ns: int,
        running: Sequence[tuple[int, int]],
        bucket: int = 0,
        pipelined: int = 0,
    ) -> int | None:
        """Return the instant by which a request that arrives now would complete.

        Args:
            queue: has the number of queued requests that are served first, as ``queued``.
            now_ns: the present instant.
            running: if no worker is free, effective start and rows of each running batch.
            bucket: bucket of the request, and of those before it; -1: unknown, the longest is assumed.
            pipelined: the rows of the batch that was sent early; 0: there is none.

        Returns:
            The instant, by durations that nearly all batches except outliers stay below; ``None`` before anything was
            measured.
        """
        table = self.bucket_models[bucket].slow_timetable
        if table is None:
            return None
        start_ns = now_ns
        if running:
            ends_ns = sorted([table.ends_ns(effective_start_ns, size) for effective_start_ns, size in running])
            if pipelined:
                ends_ns[0] = table.ends_ns(self._overhead.effective_start_ns(now_ns, ends_ns[0]), pipelined)
            start_ns = max(now_ns, min(ends_ns))
        return int(table.completes_ns(queue.queued, start_ns))

    def outlook(self, queue: RequestQueue, now_ns: int, batch: Sequence[Ticket]) -> Outlook | None:
        """Return the policy's knowledge of queue and model, for a decision between the models of a device.

        Args:
            queue: the queued requests.
            now_ns: the present instant.
            batch: the batch that the policy has decided to send; empty: none.

        Returns:
            ``None`` before anything was measured.
        """
        model = self.bucket_models[max((ticket.bucket for ticket in batch), default=0)]
        if model.timetable is None or len(batch) >= len(model.durations):
            return None  # the batch measures, so its duration is unknown
        _, tickets, deadlines, untimed = in_deadline_order(model, queue.first(queue.queued))
        limits = queue.events.recent_limits_ns() or [PATIENCE_NS]
        is_fixed = self._mixed_for or untimed or queue.several_priorities or self._exploring is not None
        is_free = self._model is not None and not is_fixed
        return Outlook(tickets, deadlines, model.blocking_ns, queue.events.gaps_ns(now_ns), min(limits), is_free)

    def _first_to_measure(self, queue: RequestQueue, now_ns: int, most: int) -> list[Ticket]:
        """Return a batch while nothing is measured: requests with as much time left as the last one has had so far."""
        began_ns, self._measuring_ns = self._measuring_ns, now_ns
        if began_ns is None:
            return queue.first(most)
        tickets = queue.first(queue.queued)
        enough = [ticket for ticket in tickets if ticket.deadline_ns - now_ns >= now_ns - began_ns]
        return enough[:most] or tickets[-most:]

    def _decide_for_late(self, queue: RequestQueue, now_ns: int) -> Decision:
        """Return the next batch if the queue has several groups, or is not all on time as it stands."""
        tickets = queue.first(queue.queued)
        if not lend_durations(self.bucket_models, self._lengths):
            bucket = tickets[0].bucket
            return Decision(
                [one for one in tickets if one.bucket == bucket][: self.bucket_models[bucket].cap], "exploration"
            )
        groups = self._groups(tickets, now_ns)
        if self._masked and len(groups) > 1:
            combined = in_one_batch(groups, now_ns)
            if combined:
                return Decision(combined, "idle_worker", shorter_too=True)
        first_batch = first_if_all_on_time(groups, now_ns, surely=queue.several_priorities)
        if first_batch is not None:
            group, size = first_batch
            other_size = group.model.size_instead_of(size, len(group.tickets))
            return self._send_on_time(group, group.tickets[:size], other_size, groups, now_ns)
        remaining, late, overdue, rejected = without_late(groups, now_ns)
        alone_s = late[-1].model.durations[1] / 1e9 if late else 0.0
        rejection = f"infeasible: even a batch of one takes {alone_s:.6f} s" if rejected else ""
        if not remaining:
            if overdue:
                return Decision(self._of_one_group(overdue), "planned", rejected, rejection=rejection)
            return self._probe(queue, late, rejected, rejection, now_ns)
        by_class = queue.several_priorities or any(group.untimed for group in remaining)
        group, beside = choose_group(remaining, now_ns, by_class=by_class)
        batch, reason = plan_batch(queue, group, now_ns, beside)
        if reason == "exploration":
            self._exploring = group.model, batch[0]
        if len(groups) == 1 and reason == "planned":
            batch = with_rows_for_free(batch, groups[0], rejected, now_ns)
        if overdue:
            batch = self._with_overdue(batch, group, overdue, late, queue.queued)
            self._proposed = batch[0]
        return Decision(batch, reason, rejected, rejection=rejection)

    def _send_on_time(
        self, group: Group, batch: list[Ticket], other_size: int, groups: list[Group], now_ns: int
    ) -> Decision:
        """Send the first batch, because all are on time, or one of another size if there is time to compare it."""
        others = [other for other in groups if other is not group]
        if compared := batch_to_compare(group, batch, other_size, others, now_ns):
            self._exploring = group.model, compared[0]
            return Decision(compared, "exploration")
        return Decision(batch, "full" if len(batch) >= len(group.model.durations) - 1 else "idle_worker")

    def _groups(self, tickets: list[Ticket], now_ns: int) -> list[Group]:
        """Return the queued requests by length bucket and shape, the group with the earliest deadline first."""
        model = self._model
        if model is not None and not (self._mixed_for and self._kind_of):
            return [in_deadline_order(model, tickets)]
        by_kind: dict[Hashable, list[Ticket]] = {}
        kind_of = self._kind_of if self._mixed_for else None
        for ticket in tickets:
            kind = ticket.bucket if kind_of is None else (ticket.bucket, kind_of(ticket.inputs))
            by_kind.setdefault(kind, []).append(ticket)
        if self._mixed_for:
            self._mixed_for = _UNMIXED_AFTER if len(by_kind) > 1 else self._mixed_for - 1
        groups = [in_deadline_order(self.bucket_models[some[0].bucket], some) for some in by_kind.values()]
        groups.sort(key=lambda group: int(group.deadlines[0]))
        return first_groups(groups, now_ns)

    def _with_overdue(
        self, batch: list[Ticket], group: Group, overdue: list[Ticket], late: list[Group], queued: int
    ) -> list[Ticket]:
        """Return the batch, with its last rows replaced by rows due to requests without a deadline.

        If the first of these requests is of another group, return a batch of that group once all of it is due.

        Args:
            batch: requests of ``group``.
            group: the group without requests that would be late even alone.
            overdue: the requests that have been queued for too long, at least one.
            late: whole groups, among them those of ``overdue``.
            queued: the number of queued requests.
        """
        self._previous_credit = self._row_credit
        self._row_credit = min(self._row_credit + len(batch) * len(overdue) / queued, float(len(overdue)))
        own = next(one for one in late if overdue[0] in one.tickets)
        members = set(map(id, own.tickets))
        overdue = [ticket for ticket in overdue if id(ticket) in members]
        if own.tickets[-1] is not group.tickets[-1]:
            overdue = overdue[: own.model.durations.size - 1]
            if self._row_credit < len(overdue):
                return batch
            self._row_credit -= len(overdue)
            return overdue
        credit = min(int(self._row_credit), len(batch), len(overdue))
        self._row_credit -= credit
        served = set(map(id, overdue[:credit]))
        others = [ticket for ticket in batch if id(ticket) not in served]  # may include rows that were added for free
        # these rows come first, because limits of cost or bytes cut the last ones
        return overdue[:credit] + others[: len(batch) - credit]

    def _of_one_group(self, tickets: list[Ticket]) -> list[Ticket]:
        model = self.bucket_models[tickets[0].bucket]
        return [ticket for ticket in tickets if ticket.bucket == tickets[0].bucket][: len(model.durations) - 1]

    def _probe(
        self, queue: RequestQueue, late: list[Group], rejected: list[Ticket], rejection: str, now_ns: int
    ) -> Decision:
        """Return the decision if no request can be on time: a probe if a new request could not be either."""
        group, events = late[0], queue.events
        is_unmeasured = events.releases > 0 and not queue.running and now_ns - events.last_end_ns > _UNMEASURED_NS
        measures = events.longest_limit_ns(now_ns - _PROBE_INTERVAL_NS) >= group.model.durations[1]
        if measures and not (group.model.learns and is_unmeasured):
            return Decision((), "", rejected, rejection=rejection)
        cap = min(len(group.model.durations) - 1, self._probe_size)
        # the known durations are in doubt, so no request is rejected because of them
        return Decision(group.tickets[-cap:], "probe")

    def __repr__(self) -> str:
        return f"Lookahead({self.max_batch_size}, {self.service_time!r})"
