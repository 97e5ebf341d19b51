"""When a batch goes, and who is in it: the decision, as a pure function of what waits, the time and the free workers.

A policy is asked whenever a worker is free and something waits: after arrivals, after a batch has finished, and at the
instant that its last answer named. It takes no clock, starts no timer and changes nothing; a simulator asks it the
same way as the live batcher does.

*Greedy* sends all that wait, up to the cap, as soon as a worker is free. Batches grow by themselves while the worker
is busy: under light load a request is served at once, under heavy load batches are full. It never idles while
something waits, so it needs no tuning; it is what most servers do.

*Timer* sends a full batch at once and a smaller one when its oldest request has waited ``max_queue_delay_s``. It trades
latency for fuller batches where the cost of a batch is mostly fixed, and is here to compare with.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import attrs

from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import Run, Ticket

__all__ = [
    "POLICY_NAMES",
    "Decision",
    "Greedy",
    "Policy",
    "PolicyCapabilities",
    "PolicyName",
    "Timer",
    "adapt_policy",
    "is_policy",
]

PolicyName = Literal["lookahead", "greedy", "timer"]
"""The policies that a batcher and a simulation know by name."""
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)


class Decision(NamedTuple):
    """What a policy wants done now.

    Attributes:
        batch: the waiting tickets to send to one free worker, in the order of the rows; empty: none yet.
        reason: why this batch goes now, for the counters: ``"full"``, ``"idle_worker"``, ``"delay_elapsed"``,
            ``"planned"``, ``"probe"``, ``"exploration"``.
        refuse: waiting tickets that cannot be served on time; they end with ``DeadlineExceeded`` at once.
        look_again_ns: when to ask again if nothing else happens; ``None``: only when something does.
        shorter_too: with length buckets: rows of shorter buckets than the first one's are padded to its length, instead
            of being left for later.
        refusal: why ``refuse`` is refused: a word for the counters, and behind a colon what the callers are told.
    """

    batch: Sequence[Ticket] = ()
    reason: str = ""
    refuse: Sequence[Ticket] = ()
    look_again_ns: int | None = None
    shorter_too: bool = False
    refusal: str = "hopeless: it cannot be answered by its deadline"


class Policy(Protocol):
    """Decides what to send, what to refuse, and when to look again.

    It may also have any of the methods that are the fields of `PolicyCapabilities`.
    """

    def decide(self, waiting: RequestQueue, now_ns: int, free_workers: int) -> Decision:
        """One decision for one free worker; asked again at once while it sends something and workers are free.

        Args:
            waiting: what waits, in service order; not to be changed.
            now_ns: the present instant, monotonic.
            free_workers: how many batches may start now, at least 1.
        """
        ...


class PolicyCapabilities(NamedTuple):
    """What a policy offers beyond deciding, under the same names; `Lookahead` describes the arguments.

    Attributes:
        finished: learns from a batch that succeeded, or that was cancelled because all its callers had left, by
            ``(size, duration_ns, now_ns, cancelled, bucket)``.
        absorb: learns from a short batch by the mean of several, by ``(run, ended_ns)``: called before ``finished`` for
            models that keep no queue, which is not called if this returns true.
        predicted_finish_ns: predicts when a request would be answered, by ``(waiting, now_ns, running, bucket,
            ahead)``.
        prepare: loads or compiles what it decides with, before requests are accepted; with ``wait=False`` it returns
            ``False`` instead of blocking.
        ahead: chooses a batch before a worker is free, for models that keep a queue, by ``(waiting, now_ns, running)``;
            called when ``full_size`` requests are queued, an attribute of such a policy.
        turn_ns: from when a batch that was sent early counts as running, by ``(sent_ns, ended_ns)``.
        finished_ahead: learns from such a batch, by ``(size, busy_ns, now_ns, early_ns, bucket)``.
        limit_rows: learns that the memory was not enough for more rows in a batch, by ``(bucket, most)``; until it is
            replaced, such batches are cut to that many rows.
        mixed: learns that a batch was chosen whose rows cannot be stacked.
    """

    finished: Callable[..., object] | None = None
    absorb: Callable[[Run, int], bool] | None = None
    predicted_finish_ns: Callable[..., int | None] | None = None
    prepare: Callable[..., bool] | None = None
    ahead: Callable[[RequestQueue, int, Sequence[tuple[int, int]]], Decision] | None = None
    turn_ns: Callable[[int, int], int] | None = None
    finished_ahead: Callable[[int, int, int, int, int], object] | None = None
    limit_rows: Callable[[int, int], None] | None = None
    mixed: Callable[[], None] | None = None


def adapt_policy(policy: Policy) -> PolicyCapabilities:
    """Return what a policy offers; the only place where that is looked for by name."""
    return PolicyCapabilities(**{name: getattr(policy, name, None) for name in PolicyCapabilities._fields})


def is_policy(value: Any) -> bool:
    """An object with ``decide`` is a policy."""
    return callable(getattr(value, "decide", None))


@attrs.frozen
class Greedy:
    """All that wait, up to the cap, whenever a worker is free."""

    max_batch_size: int

    def decide(self, waiting: RequestQueue, now_ns: int, free_workers: int) -> Decision:  # noqa: ARG002 - the protocol
        """The first ``max_batch_size`` in service order, at once."""
        reason = "full" if waiting.waiting >= self.max_batch_size else "idle_worker"
        return Decision(waiting.first(self.max_batch_size), reason)


@attrs.define
class Timer:
    """A full batch at once, a smaller one when the oldest has waited long enough."""

    max_batch_size: int
    max_queue_delay_ns: int

    def limit_rows(self, bucket: int, most: int) -> None:  # noqa: ARG002 - buckets share the queue
        """A batch of so many rows is full from now on: the memory was not enough for more."""
        self.max_batch_size = min(self.max_batch_size, most)

    def decide(self, waiting: RequestQueue, now_ns: int, free_workers: int) -> Decision:  # noqa: ARG002 - the protocol
        """The first ``max_batch_size`` in service order when there are as many or the oldest has waited its time."""
        if waiting.waiting >= self.max_batch_size:
            return Decision(waiting.first(self.max_batch_size), "full")
        due_ns = waiting.oldest_ns + self.max_queue_delay_ns
        if now_ns >= due_ns:
            return Decision(waiting.first(self.max_batch_size), "delay_elapsed")
        return Decision(look_again_ns=due_ns)
