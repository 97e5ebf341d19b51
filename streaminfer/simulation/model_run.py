"""Requests of one model in simulated time: its queue, the decisions of its policy, and the record of outcomes."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.batching.policy import Decision, Policy
from streaminfer.batching.queue._event_ring_cy import BatchRecord
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER, Execution
from streaminfer.simulation.simulation_result import SimulationResult

__all__ = ["ModelRun"]


class ModelRun:
    """One run of a policy over a trace; the owner of the simulated clock reports events to it.

    Args:
        policy: the policy.
        arrivals_ns: shape (n,), int64, ascending.
        deadlines_ns: shape (n,), int64.
        priorities: shape (n,); ``None``: all the same.

    Attributes:
        queue: the queued requests.
    """

    def __init__(
        self,
        policy: Policy,
        arrivals_ns: NDArray[np.int64],
        deadlines_ns: NDArray[np.int64],
        priorities: NDArray[np.int32] | None = None,
    ) -> None:
        n = arrivals_ns.size
        self.queue = RequestQueue(n + 1)  # never full, because a full queue would end a delay
        self._policy = policy
        self._instants = arrivals_ns, deadlines_ns
        self._arrivals: list[int] = arrivals_ns.tolist()
        self._deadlines: list[int] = deadlines_ns.tolist()
        self._priorities: list[int] = [0] * n if priorities is None else priorities.tolist()
        self._following = 0
        self._recheck_ns = NEVER
        self._ends_ns = [-1] * n  # -1: no response
        self._drops_ns: list[int] = []
        self._records: list[BatchRecord] = []

    @property
    def next_ns(self) -> int:
        """Instant of its next event, other than the end of a batch."""
        arrival_ns = self._arrivals[self._following] if self._following < len(self._arrivals) else NEVER
        return min(arrival_ns, self.queue.next_deadline_ns, self._recheck_ns)

    def admit(self, now_ns: int) -> None:
        """Queue the requests that have arrived, and drop those whose deadline has come."""
        while self._following < len(self._arrivals) and self._arrivals[self._following] <= now_ns:
            index = self._following
            self._following += 1
            if self._deadlines[index] <= now_ns:
                self._drops_ns.append(now_ns)
            else:
                self.queue.admit(None, index, _CALLER, now_ns, self._deadlines[index], self._priorities[index])
        waited = sum(execution is None for _, execution, _ in self.queue.expire(now_ns))
        self._drops_ns += [now_ns] * waited
        self._recheck_ns = NEVER

    def propose(self, now_ns: int, free_workers: int = 1) -> Decision | None:
        """Return the policy's next batch, or ``None``; drop the requests that the policy rejects.

        Raises:
            RuntimeError: the policy breaks the protocol.
        """
        while self.queue.queued:
            decision = self._policy.decide(self.queue, now_ns, free_workers)
            for ticket in decision.reject:
                if ticket.state != "queued":
                    raise RuntimeError(f"{self._policy!r} rejected {ticket!r}, which is not queued")
                self.queue.end(ticket)
                self._drops_ns.append(now_ns)
            if decision.batch:
                return decision
            if not decision.reject:
                if decision.recheck_ns is not None:
                    if decision.recheck_ns <= now_ns:
                        raise RuntimeError(f"{self._policy!r} sends nothing and wants to look again at once")
                    self._recheck_ns = decision.recheck_ns
                break
        return None

    def take(self, batch: Any, now_ns: int, reason: str) -> Execution:
        """Send a batch.

        Raises:
            RuntimeError: a request of the batch is not queued.
        """
        execution = self.queue.take(batch, now_ns, reason)
        if execution.record is None or len(execution.tickets) < len(batch):
            raise RuntimeError(f"{self._policy!r} sends requests that do not wait")
        self._records.append(execution.record)
        return execution

    def end(self, execution: Execution, now_ns: int) -> None:
        """Note the end of a batch."""
        for index in execution.inputs:
            self._ends_ns[index] = now_ns
        self.queue.events.ended(execution.record, now_ns)
        if execution.live:
            self.queue.deliver(execution, execution.inputs, execution.started_ns, now_ns)

    def result(self, workers: int = 1) -> SimulationResult:
        """Return the outcomes of the requests and batches, all of which have ended."""
        arrivals_ns, deadlines_ns = self._instants
        ends_ns = np.array(self._ends_ns, np.int64)
        answered = ends_ns >= 0
        is_on_time = answered & (ends_ns <= deadlines_ns)
        on_time, all_answered = int(np.count_nonzero(is_on_time)), int(np.count_nonzero(answered))
        batches = [(batch.start_ns, batch.end_ns, batch.worker, batch.size) for batch in self._records]
        starts_ns, batch_ends_ns, batch_workers, sizes = np.array(batches, np.int64).reshape(-1, 4).T
        return SimulationResult(
            on_time=on_time,
            dropped=arrivals_ns.size - all_answered,
            late=all_answered - on_time,
            arrivals_s=arrivals_ns / 1e9,
            latencies_s=np.where(answered, ends_ns - arrivals_ns, np.nan) / 1e9,
            is_on_time=is_on_time,
            drops_s=np.array(self._drops_ns, np.int64) / 1e9,
            batch_sizes=sizes.copy(),
            batch_starts_s=starts_ns / 1e9,
            batch_ends_s=batch_ends_ns / 1e9,
            batch_workers=batch_workers.copy(),
            reasons=tuple([batch.reason for batch in self._records]),
            workers=workers,
        )


class _Caller:
    """Future of every request: never cancelled, and without a result, because the record has it."""

    def done(self) -> bool:
        return False

    def set_result(self, row: Any) -> None:
        """Do nothing."""


_CALLER = _Caller()
