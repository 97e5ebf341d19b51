"""Policies: decide when to release a batch, and of which requests, from the queue, the time and the free workers.

A policy decides when a worker is free and a request is queued: after arrivals, after the end of a batch, and at the
instant that its last decision named. It reads no clock, starts no timer and changes nothing in the batcher, so the
simulator can call it like the live batcher.

*Greedy* sends all queued requests, up to the largest batch, as soon as a worker is free. Batches grow while the worker
is busy: under light load a request is served at once, under heavy load batches are full. A worker is never idle while
a request is queued, so there is nothing to tune; most servers work like this.

With a delay, a batch that is not full is held back until its oldest request has been queued for that long, or the queue
is full. That trades latency for fuller batches, if most of a batch's cost is fixed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import attrs

from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import Execution, Ticket

__all__ = [
    "POLICY_NAMES",
    "Decision",
    "Greedy",
    "Policy",
    "PolicyCapabilities",
    "PolicyName",
    "adapt_policy",
    "is_policy",
]

PolicyName = Literal["lookahead", "greedy"]
"""The policies that a batcher and a simulation know by name."""
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)


class Decision(NamedTuple):
    """Decision of a policy.

    Attributes:
        batch: the queued tickets to send to one free worker, in the order of the rows; empty: send none yet.
        reason: why this batch is released now, for the counters: ``"full"``, ``"idle_worker"``, ``"max_queue_delay"``,
            ``"planned"``, ``"probe"``, ``"exploration"``, ``"returning_callers"``.
        reject: queued tickets that cannot be served on time; they end with ``DeadlineExceeded`` at once.
        recheck_ns: when to decide again if nothing else happens; ``None``: only after an event.
        shorter_too: with length buckets: pad rows of shorter buckets to the length of the first one's, instead of
            leaving them for a later batch.
        rejection: the reason of ``reject``: a word for the counters, a colon, and the message for the callers.
    """

    batch: Sequence[Ticket] = ()
    reason: str = ""
    reject: Sequence[Ticket] = ()
    recheck_ns: int | None = None
    shorter_too: bool = False
    rejection: str = "infeasible: it cannot be served by its deadline"


class Policy(Protocol):
    """Decides which requests to send, which to reject, and when to decide again.

    A policy may also have the methods that are named like the fields of `PolicyCapabilities`.
    """

    def decide(self, queue: RequestQueue, now_ns: int, free_workers: int) -> Decision:
        """Return one decision for one free worker; called again at once if it sends a batch and workers are free.

        Args:
            queue: the queued requests, in service order, and their number, ``queued``; read only. Each request has
                ``enqueued_ns`` and ``deadline_ns``, monotonic instants, and ``priority``.
            now_ns: the present instant, monotonic.
            free_workers: how many free workers may share the queue, at least 1.
        """


class PolicyCapabilities(NamedTuple):
    """Optional methods of a policy, under the same names; `Lookahead` describes the arguments.

    Attributes:
        observe: learns from a batch that succeeded, or that was cancelled because all its callers had left, by
            ``(size, duration_ns, now_ns, cancelled, bucket)``.
        skip: returns whether a short batch need not be learned, by ``(execution, ended_ns)``; called before
            ``observe``, for models without a queue. If it returns true, ``observe`` is not called.
        predicted_finish_ns: predicts when a request would complete, by ``(queue, now_ns, running, bucket, pipelined)``.
        prepare: loads or compiles kernels before requests are accepted; with ``wait=False`` it returns ``False``
            instead of blocking.
        choose_pipelined: chooses a batch before a worker is free, for models with a queue, by ``(queue, now_ns,
            running)``; called when ``full_size`` requests are queued, an attribute of such a policy.
        effective_start_ns: returns when a pipelined batch starts to count as running, by ``(sent_ns, ended_ns)``.
        observe_pipelined: learns from such a batch, by ``(size, busy_ns, now_ns, early_ns, bucket)``.
        limit_rows: learns that more rows in a batch exceed the memory, by ``(bucket, most)``. Until the policy is
            replaced, such batches are cut to that many rows.
        mixed: learns that the rows of a chosen batch could not be stacked.
        expected_ns: returns the expected duration of a batch, by ``(size, bucket)``; 0: unknown.
        bucket_models: for each bucket, an object whose ``timetable`` has these durations up to the size of best
            throughput, and whose ``compares`` tells whether a batch may have twice that size.
        patience_ns: the policy serves requests with a deadline first, by priority; those without one get their part of
            each batch once they have been queued for so long. ``None``: it may have another order.
        outlook: returns the policy's knowledge of queue and model, for a decision between the models of a device, by
            ``(queue, now_ns, batch)``; ``batch`` is the one that it has just decided to send. ``None``: it has none.
    """

    observe: Callable[..., object] | None = None
    skip: Callable[[Execution, int], bool] | None = None
    predicted_finish_ns: Callable[..., int | None] | None = None
    prepare: Callable[..., bool] | None = None
    choose_pipelined: Callable[[RequestQueue, int, Sequence[tuple[int, int]]], Decision] | None = None
    effective_start_ns: Callable[[int, int], int] | None = None
    observe_pipelined: Callable[[int, int, int, int, int], object] | None = None
    limit_rows: Callable[[int, int], None] | None = None
    mixed: Callable[[], None] | None = None
    expected_ns: Callable[[int, int], int] | None = None
    bucket_models: Sequence[Any] | None = None
    patience_ns: int | None = None
    outlook: Callable[[RequestQueue, int, Sequence[Ticket]], Any] | None = None


def adapt_policy(policy: Policy) -> PolicyCapabilities:
    """Return the optional methods of a policy; this is the only place that looks them up by name."""
    return PolicyCapabilities(**{name: getattr(policy, name, None) for name in PolicyCapabilities._fields})


def is_policy(value: Any) -> bool:
    """Return whether a value is a policy: an object with a ``decide`` method."""
    return not isinstance(value, type) and callable(getattr(value, "decide", None))


@attrs.define
class Greedy:
    """Policy that sends all queued requests, up to ``max_batch_size``, when a worker is free.

    Attributes:
        max_batch_size: the most rows in a batch.
        max_queue_delay_ns: a batch that is not full is held back until its oldest request has been queued for so long,
            or the queue is full.
    """

    max_batch_size: int
    max_queue_delay_ns: int = 0
    _limits: dict[int, int] = attrs.field(factory=dict, init=False)

    def limit_rows(self, bucket: int, most: int) -> None:
        """Treat a batch of so many rows of a bucket as full, because more rows exceed the memory."""
        self._limits[bucket] = most

    def decide(self, queue: RequestQueue, now_ns: int, free_workers: int) -> Decision:  # noqa: ARG002 - the protocol
        """Return the first ``max_batch_size`` requests in service order, or the instant at which the oldest is due."""
        reason = "idle_worker"
        if queue.queued >= self.max_batch_size:
            reason = "full"
        elif self.max_queue_delay_ns and (queue.full or self._fills_memory(queue)):
            reason = "full"  # otherwise the next request would be rejected although a worker is free
        elif self.max_queue_delay_ns:
            due_ns = queue.oldest_ns + self.max_queue_delay_ns
            if now_ns < due_ns:
                return Decision(recheck_ns=due_ns)
            reason = "max_queue_delay"
        return Decision(queue.first(self.max_batch_size), reason)

    def _fills_memory(self, queue: RequestQueue) -> bool:
        """Return whether a bucket has as many queued requests as fit into memory together."""
        if not self._limits:
            return False
        queued = Counter(ticket.bucket for ticket in queue.first(queue.queued))
        return any(queued[bucket] >= most for bucket, most in self._limits.items())
