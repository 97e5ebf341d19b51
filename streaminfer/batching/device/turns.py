"""Turns on a shared device: a state machine without loop, thread or clock.

*Design*. Each batcher's policy proposes its next batch as if it had the device alone; the proposal is a *bid*. Of
several bids one is granted, by the first rule that applies:

1. A model that has bid in vain for ``max_wait_ns`` is first; of several such models, the one that has done so longest.
   Only a turn ends that time: a model still waits while its requests expire one by one and others are served, and a
   model that was loaded must still get its turn. Loads do not count. Otherwise, if a load takes longer than
   ``max_wait_ns``, each load would serve a single batch.
2. If each policy has an outlook (its queue and batch durations), the kernel
   (:mod:`~streaminfer.batching.planner.turn_kernels`) plays all queues forward together. It names the model, and, if
   the queue is of one kind, may name another batch than the proposed one.
3. Otherwise, or if no batch would be on time, the bid with the earliest deadline is first; a model that is in memory
   precedes others.

*Invariants*. One of the bids is granted, so the device is never idle while a batch could run. A model that has a batch
to send gets a turn within ``max_wait_ns`` from its first bid, plus one batch of each other model, the running one, and
loads.

*Complexity*. O(models), and a call of the kernel if two or more wait.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from streaminfer.batching.planner import kernel_loader
from streaminfer.batching.planner.outlook import Outlook
from streaminfer.batching.queue._ticket_cy import NEVER, Ticket
from streaminfer.batching.service_time.service_time import whole_ns

__all__ = ["Bid", "Turns"]

_MOST_QUEUED = 512
"""Requests of each queue that are played forward, those with the earliest deadlines."""


class Bid(NamedTuple):
    """The batch that a model would send.

    Attributes:
        key: the model.
        batch: the requests of the batch.
        outlook: outlook of the policy; ``None``: it has none.
        weight: value of a request on time.
        slowdown: how many times as long its batches take beside the running ones.
        needs: bytes of the model; 0: it is always in memory, or all models fit.
        load_ns: expected nanoseconds of its load.
        is_loaded: it is in memory.
    """

    key: Hashable
    batch: Sequence[Ticket]
    outlook: Outlook | None
    weight: float = 1.0
    slowdown: float = 1.0
    needs: int = 0
    load_ns: int = 0
    is_loaded: bool = True


class Turns:
    """Grants one of several bids.

    Args:
        max_wait_ns: the longest that a model with a batch to send is passed over.
    """

    def __init__(self, max_wait_ns: int) -> None:
        self.max_wait_ns = max_wait_ns
        self._since_ns: dict[Hashable, int] = {}  # instant of the first bid after a turn

    def is_overdue(self, key: Hashable, now_ns: int) -> bool:
        """Note that a model has a batch to send; return whether it has waited for ``max_wait_ns``."""
        return now_ns - self._since_ns.setdefault(key, now_ns) >= self.max_wait_ns

    def overdue_at_ns(self, key: Hashable) -> int:
        """Return when a model will have waited for ``max_wait_ns``; `NEVER`: it has nothing to send."""
        since_ns = self._since_ns.get(key)
        return NEVER if since_ns is None else since_ns + self.max_wait_ns

    def leave_out(self, load_ns: int, now_ns: int) -> None:
        """Exclude a load that has just ended from the time in which models were passed over."""
        self._since_ns = {key: min(since_ns + load_ns, now_ns) for key, since_ns in self._since_ns.items()}

    def forget(self, key: Hashable) -> None:
        """Forget since when a model has been waiting."""
        self._since_ns.pop(key, None)

    def choose(
        self, bids: Sequence[Bid], now_ns: int, idle: Sequence[Bid] = (), free: int = 0
    ) -> tuple[int, Sequence[Ticket]]:
        """Grant a bid.

        Args:
            bids: at least one, of different models.
            now_ns: the present instant.
            idle: models without a batch to send, which may have to leave memory, as empty bids with an outlook.
            free: bytes of memory that no model occupies.

        Returns:
            The position of the granted bid, and the batch to send.
        """
        chosen, batch = self._choose(bids, now_ns, idle, free) if len(bids) > 1 else (0, bids[0].batch)
        if bids[chosen].is_loaded:  # otherwise its turn follows the load
            self.forget(bids[chosen].key)
        return chosen, batch

    def _choose(self, bids: Sequence[Bid], now_ns: int, idle: Sequence[Bid], free: int) -> tuple[int, Sequence[Ticket]]:
        overdue = [at for at, bid in enumerate(bids) if self.is_overdue(bid.key, now_ns)]
        if overdue:
            longest = min(overdue, key=lambda at: self._since_ns[bids[at].key])
            return longest, bids[longest].batch
        candidates = [*bids, *idle]
        outlooks = [bid.outlook for bid in candidates if bid.outlook is not None]
        if len(outlooks) == len(candidates):
            model, head, size = _run_kernel(candidates, outlooks, now_ns, free)
            if model >= 0:
                outlook = outlooks[model]
                return model, outlook.tickets[head : head + size] if outlook.is_free else bids[model].batch
        earliest = min(
            range(len(bids)), key=lambda at: (not bids[at].is_loaded, min(one.deadline_ns for one in bids[at].batch))
        )
        return earliest, bids[earliest].batch


def _run_kernel(bids: Sequence[Bid], outlooks: Sequence[Outlook], now_ns: int, free: int) -> tuple[int, int, int]:
    queued_deadlines = [outlook.deadlines[:_MOST_QUEUED] for outlook in outlooks]
    caps = np.array([outlook.durations.size - 1 for outlook in outlooks])
    sizes = [
        (0 if one.is_free else len(bid.batch)) if bid.batch else -1 for bid, one in zip(bids, outlooks, strict=True)
    ]
    durations = np.ones((len(bids), int(caps.max()) + 1), np.int64)
    for row, bid, outlook in zip(durations, bids, outlooks, strict=True):
        slowed_durations = outlook.durations
        if bid.slowdown != 1.0:
            slowed_durations = whole_ns(slowed_durations.astype(np.float64), bid.slowdown)
        row[: slowed_durations.size] = slowed_durations
    model, head, size = kernel_loader.load().choose_turn(
        now_ns,
        np.concatenate(queued_deadlines),
        np.cumsum([0, *(deadlines.size for deadlines in queued_deadlines)]),
        np.minimum(sizes, caps),
        durations,
        caps,
        np.array([outlook.gaps_ns for outlook in outlooks]),
        np.array([outlook.limit_ns for outlook in outlooks]),
        np.array([bid.weight for bid in bids], np.float64),  # a user gives whole numbers too
        free,
        np.array([bid.needs for bid in bids]),
        np.array([0 if bid.is_loaded else max(bid.load_ns, 1) for bid in bids]),
        np.array([max(bid.load_ns, 1) for bid in bids]),
    )
    return int(model), int(head), int(size)
