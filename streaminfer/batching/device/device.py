"""`Device`: one accelerator, or one core, that several batchers share."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

import attrs

from streaminfer._internal.validation import check_count, check_duration, check_instance, check_number
from streaminfer.batching.device.interference import Interference
from streaminfer.batching.device.statistics import DeviceModelStatistics, DeviceStatistics
from streaminfer.batching.device.turns import Bid, Turns
from streaminfer.batching.planner.outlook import Outlook
from streaminfer.batching.policy import Decision
from streaminfer.batching.queue._ticket_cy import Execution, Ticket
from streaminfer.request import timeout_ns

__all__ = ["Device", "DeviceMember"]


class DeviceMember(Protocol):
    """Dispatcher of one batcher, as the device sees it."""

    source: str
    """Name of the model; several may have the same."""

    def __hash__(self) -> int:
        """By identity."""

    @property
    def is_waiting(self) -> bool:
        """Whether a request is queued and a worker of its own is free."""

    @property
    def runs_inline(self) -> bool:
        """Whether a batch runs on the event loop, within :meth:`grant`."""

    def propose(self, now_ns: int) -> Decision | None:
        """Return the next batch, if any; expires and rejects what cannot be on time."""

    def outlook(self, now_ns: int, batch: Sequence[Ticket]) -> Outlook | None:
        """Return what is known of queue and model."""

    def expected_ns(self, execution: Execution) -> int:
        """Return how long a batch is expected to take alone; 0: not known."""

    def grant(self, batch: Sequence[Ticket], decision: Decision, now_ns: int) -> None:
        """Send a batch: it calls :meth:`Device.begin` if it begins."""

    def settle(self) -> None:
        """Set the timer for what is left."""


@attrs.define
class _Account:
    """What one model had of the device."""

    batches: int = 0
    busy_ns: int = 0
    waits: int = 0
    longest_wait_ns: int = 0


class Device:
    """One accelerator, or one core, that several batchers share.

    Without it each batcher plans as if the device were its own, and a batch of one model makes the batches of another
    late. With it the next batch is chosen over all models that wait, by deadlines and what batches are known to take.

    Not thread-safe: the batchers of a device belong to one event loop. One of another loop is refused with
    ``RuntimeError`` until that loop is closed.

    Args:
        name: for reports.
        concurrency: how many batches may run at once. With more than one, how much models slow each other down is
            learned, and those that do more one after the other are kept apart.
        weights: by name of the model, what a request on time is worth, from 0.001 to 1000; 1 for others. The name is
            that of the backend (``backend.name = "faces"``) or function; a second one of a name is ``"faces#2"`` here.
        max_wait_s: the longest that a model is passed over, also one whose requests expire meanwhile; then its next
            batch goes first.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Example:
        >>> import streaminfer as si
        >>> device = si.Device("gpu:0", weights={"faces": 2})
        >>> faces = si.AdaptiveBatcher(max_batch_size=16, slo_s=0.025, device=device)
        >>> speech = si.AdaptiveBatcher(max_batch_size=32, slo_s=0.100, device=device)
    """

    def __init__(
        self,
        name: str,
        *,
        concurrency: int = 1,
        weights: Mapping[str, float] | None = None,
        max_wait_s: float = 1.0,
    ) -> None:
        check_instance("name", name, lambda it: isinstance(it, str) and bool(it), "a name")
        self.name = name
        self.concurrency = check_count("concurrency", concurrency)
        check_instance(
            "weights", weights, lambda it: it is None or isinstance(it, Mapping), "a mapping of name to weight"
        )
        self.weights = dict(weights or {})
        for weight in self.weights.values():
            check_number("weights", weight, "numbers from 0.001 to 1000", lambda it: 0.001 <= it <= 1000)
        self.max_wait_s = check_duration("max_wait_s", max_wait_s, positive=True)
        self._turns = Turns(timeout_ns(self.max_wait_s))
        self._interference = Interference()
        self._names: WeakKeyDictionary[DeviceMember, str] = WeakKeyDictionary()
        self._waiting: dict[DeviceMember, int] = {}  # since when
        self._running: dict[Execution, DeviceMember] = {}
        self._accounts: dict[str, _Account] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_free(self) -> bool:
        """Whether another batch may begin."""
        return len(self._running) < self.concurrency

    def enter(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve a batcher of an event loop.

        Raises:
            RuntimeError: it serves batchers of another one, which is not closed.
        """
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(
                f"{self!r} serves batchers of another event loop; make a device for each loop, or run these on one"
            )
        self._loop = loop
        for member in list(self._waiting):
            self.leave(member)
        self._running.clear()  # what a closed loop left behind holds no slot
        self._interference.forget()

    def join(self, member: DeviceMember, now_ns: int) -> None:
        """Consider a batcher while it has queued requests; called when that may have changed."""
        if member.is_waiting:
            self._waiting.setdefault(member, now_ns)
        else:
            self._waiting.pop(member, None)

    def leave(self, member: DeviceMember) -> None:
        """Forget a batcher that stopped, except for what it had and what runs."""
        self._waiting.pop(member, None)
        self._turns.forget(self._name(member))
        del self._names[member]

    def free_at_ns(self, now_ns: int) -> int:
        """Return when another batch is expected to be able to begin."""
        if self.is_free:
            return now_ns
        ends_ns = (execution.started_ns + member.expected_ns(execution) for execution, member in self._running.items())
        return max(now_ns, min(ends_ns))

    def dispatch(self, now_ns: int) -> bool:
        """Grant turns until no slot is free or no batcher has a batch to send.

        Returns:
            Whether to dispatch again at the next turn of the loop, because a batch ran on the loop.
        """
        members = list(self._waiting)
        again = False
        try:
            while self.is_free and self._waiting and not again:
                bids, decisions = self._bids(now_ns)
                if not bids:
                    break
                at, batch = self._turns.choose(bids, now_ns)
                member, decision = decisions[at]
                for other, _ in decisions:
                    self._account(other).waits += other is not member
                account = self._account(member)
                account.longest_wait_ns = max(account.longest_wait_ns, now_ns - self._waiting.pop(member))
                member.grant(batch, decision, now_ns)
                self.join(member, now_ns)
                again = member.runs_inline
        finally:  # whatever one raises, the timers of the others are set
            for member in members:
                member.settle()
        return again

    def next_waiting(self) -> DeviceMember | None:
        """Return a batcher that has queued requests while a slot is free; ``None``: there is nothing to dispatch."""
        if not self.is_free:
            return None
        return next((member for member in self._waiting if member.is_waiting), None)

    def begin(self, execution: Execution, member: DeviceMember, now_ns: int) -> None:
        """Note that a batch takes a slot."""
        self._running[execution] = member
        self._account(member).batches += 1
        self._interference.begin(execution, self._name(member), now_ns)

    def end(self, execution: Execution, now_ns: int, *, succeeded: bool) -> None:
        """Note that a batch gives its slot back; where others slowed it down, it counts as started later by that."""
        member = self._running.pop(execution, None)
        if member is None:
            return  # of a loop that was closed
        self._account(member).busy_ns += now_ns - execution.started_ns
        expected_ns = member.expected_ns(execution) if succeeded else 0
        alone_ns = self._interference.end(execution, expected_ns, now_ns)
        if self.concurrency > 1:
            execution.effective_start_ns = max(now_ns - alone_ns, execution.started_ns)

    def statistics(self) -> DeviceStatistics:
        """Return a frozen snapshot."""
        slowdowns = self._interference.slowdowns()
        return DeviceStatistics(
            name=self.name,
            concurrency=self.concurrency,
            running=len(self._running),
            waiting=tuple(sorted(self._name(member) for member in self._waiting if member.is_waiting)),
            models={
                name: DeviceModelStatistics(
                    batches=account.batches,
                    busy_s=account.busy_ns / 1e9,
                    waits=account.waits,
                    longest_wait_s=account.longest_wait_ns / 1e9,
                    slowdowns={str(other): value for (model, other), value in slowdowns.items() if model == name},
                )
                for name, account in sorted(self._accounts.items())
            },
        )

    def _bids(self, now_ns: int) -> tuple[list[Bid], list[tuple[DeviceMember, Decision]]]:
        bids: list[Bid] = []
        decisions: list[tuple[DeviceMember, Decision]] = []
        for member in list(self._waiting):
            decision = member.propose(now_ns) if member.is_waiting else None
            if decision is None:
                self._waiting.pop(member, None)
                continue
            name = self._name(member)
            is_overdue = self._turns.is_overdue(name, now_ns)
            if self.concurrency > 1 and not is_overdue and self._interference.keeps_apart(name):
                continue
            decisions.append((member, decision))
            bids.append(
                Bid(
                    name,
                    decision.batch,
                    member.outlook(now_ns, decision.batch),
                    self.weights.get(name, 1.0),
                    self._interference.slowdown(name) if self.concurrency > 1 else 1.0,
                )
            )
        return bids, decisions

    def _account(self, member: DeviceMember) -> _Account:
        return self._accounts.setdefault(self._name(member), _Account())

    def _name(self, member: DeviceMember) -> str:
        """Return the name of a model, which no other one on the device has."""
        name = self._names.get(member)
        if name is None:
            taken = set(self._names.values())
            names = (f"{member.source}#{number}" if number > 1 else member.source for number in itertools.count(1))
            name = self._names[member] = next(name for name in names if name not in taken)
        return name

    def __repr__(self) -> str:
        return f"Device({self.name!r}, running={len(self._running)}/{self.concurrency}, waiting={len(self._waiting)})"

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()
