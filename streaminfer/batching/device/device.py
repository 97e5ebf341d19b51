"""`Device`: one accelerator, or one core, that several batchers share."""

import asyncio
import functools
import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from weakref import WeakKeyDictionary

import attrs

from streaminfer._internal.display.unique_name import unique_name
from streaminfer._internal.validation import (
    check_count,
    check_duration,
    check_instance,
    check_number,
    expected,
    is_name,
)
from streaminfer.batching.device.interference import Interference
from streaminfer.batching.device.member import DeviceMember, Residence
from streaminfer.batching.device.preemption import Preemption
from streaminfer.batching.device.promotion import Promotions
from streaminfer.batching.device.resident_set import ResidentSet
from streaminfer.batching.device.stake import is_in_vain, needed_ns
from streaminfer.batching.device.statistics import Account, DeviceModelStatistics, DeviceStatistics
from streaminfer.batching.device.turns import Bid, Turns
from streaminfer.batching.policy import Decision
from streaminfer.batching.queue._ticket_cy import NEVER, Execution, Ticket
from streaminfer.request import timeout_ns

__all__ = ["Device"]

_NUMBERS = itertools.count(1)


@attrs.define
class _Level:
    """Batches that take turns with each other: all of the device, or those of its foreground or background."""

    running: dict[Execution, DeviceMember] = attrs.field(factory=dict)
    interference: Interference = attrs.field(factory=Interference)


class Device:
    """One accelerator, or one core, that several batchers share.

    Without a `Device`, each batcher plans as if it had the accelerator alone, and a batch of one model makes batches of
    others late. With it, the next batch is chosen over all waiting models, by deadlines and known batch durations.

    Not thread-safe: the batchers of a device belong to one event loop. A batcher of another loop is rejected with
    ``RuntimeError`` until that loop is closed.

    Args:
        name: for reports.
        concurrency: how many batches may run at once; with ``preemptive``, in the foreground and in the background
            each. If it is above one, the device learns how much models slow each other down. It keeps pairs apart
            that complete more requests one after the other.
        weights: value of a request on time, by name of the model, from 0.001 to 1000; 1 for others. The name is
            that of the backend (``backend.name = "faces"``) or function; a second one of a name is ``"faces#2"`` here.
            Weights have no effect if a model has another policy than ``"lookahead"``.
        max_wait_s: the longest that a model is passed over, even if its requests expire meanwhile; then its next
            batch is first. Time for loads does not count.
        memory_bytes: memory of the device, for models that do not fit together. A model whose backend has a
            `Residency` is loaded when it is its turn, and evicted if it is needed later than others. Subtract the
            memory of models without a `Residency`. ``None``: all models fit.
        preemptive: on CPU cores, run the models with the tightest ``slo_s`` in the foreground: their batches begin at
            once, even while a batch of another model runs, which the operating system then delays. The other models
            take turns in the background, at the lowest priority of the system unless a batch would be late. Needs
            Linux, the right to raise a thread's priority, and backends with `BackgroundRuns`; not ``memory_bytes``.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

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
        memory_bytes: int | None = None,
        preemptive: bool = False,
    ) -> None:
        check_instance("name", name, is_name, "a name")
        self.name = name
        self._number = next(_NUMBERS)
        self.concurrency = check_count("concurrency", concurrency)
        expectation = "a mapping of name to weight"
        check_instance("weights", weights, Mapping | None, expectation)
        self.weights = dict(weights or {})
        for model, weight in self.weights.items():
            check_instance("weights", model, str, expectation)
            check_number("weights", weight, "numbers from 0.001 to 1000", lambda it: 0.001 <= it <= 1000)
        self.max_wait_s = check_duration("max_wait_s", max_wait_s, positive=True)
        self._turns = Turns(timeout_ns(self.max_wait_s))
        check_instance("preemptive", preemptive, bool, "True or False")
        self._preemption = Preemption()
        self._promotions = Promotions(timeout_ns(self.max_wait_s), self._count_promotion)
        self._front, self._back = _Level(), _Level()
        self._levels = (self._front, self._back) if preemptive else (self._front,)
        self._names: WeakKeyDictionary[DeviceMember, str] = WeakKeyDictionary()
        self._waiting: dict[DeviceMember, int] = {}  # instant from which each waits
        self._accounts: dict[str, Account] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.memory_bytes = None if memory_bytes is None else check_count("memory_bytes", memory_bytes)
        if preemptive and memory_bytes is not None:
            raise ValueError(expected("memory_bytes", "None with preemptive=True", memory_bytes))
        self._memory: ResidentSet[Residence] = ResidentSet(memory_bytes or 0)
        self._pinned: dict[DeviceMember, Callable[[], None]] = {}
        self._loaded_for: DeviceMember | None = None  # a model that was loaded for a turn, and has not had it yet

    @property
    def preemptive(self) -> bool:
        """Whether batches of models with a tighter objective begin while those of others run."""
        return len(self._levels) > 1

    @property
    def is_free(self) -> bool:
        """Whether a batch of any model may begin; with ``preemptive``, in the foreground."""
        return self._has_slot(self._front)

    def is_free_for(self, member: DeviceMember) -> bool:
        """Return whether a batch of a model may begin."""
        return self._has_slot(self._level(member))

    def others_wait(self, member: DeviceMember) -> bool:
        """Return whether a batcher other than this one waits for a turn."""
        return any(other is not member and other.is_waiting for other in self._waiting)

    def enter(self, loop: asyncio.AbstractEventLoop, member: DeviceMember) -> None:
        """Add a batcher of an event loop.

        Raises:
            RuntimeError: the device serves batchers of another loop, which is not closed.
            ValueError: the model alone exceeds the memory; or it, or another model that it moves to the background,
                cannot run there.
        """
        self.check_fits(member)
        if self._loop is not loop:
            self._bind_loop(loop)
        if self.preemptive:
            self._preemption.enter(member)

    def check_fits(self, member: DeviceMember) -> None:
        """Check that a model fits in memory alone.

        Raises:
            ValueError: it does not.
        """
        needs = self._needs(member)
        if self.memory_bytes is not None and needs > self.memory_bytes:
            raise ValueError(expected("memory_bytes", f"at least {needs}, for {member.source}", self.memory_bytes))

    def join(self, member: DeviceMember, now_ns: int) -> int:
        """Update whether a batcher waits for a turn; return when to dispatch again if nothing else happens.

        Batchers call it when that may have changed.
        """
        if not member.is_waiting:
            self._waiting.pop(member, None)
            return NEVER
        self._waiting.setdefault(member, now_ns)
        again_ns = self._pause_ends_ns(member)
        if again_ns <= now_ns and not self._is_loaded(member):  # its load may be postponed until it is overdue
            again_ns = self._turns.overdue_at_ns(self._name(member))
        return again_ns if again_ns > now_ns else NEVER

    def leave(self, member: DeviceMember) -> None:
        """Remove a batcher that stopped; its counters and running batches stay."""
        self._waiting.pop(member, None)
        self._turns.forget(self._name(member))
        del self._names[member]
        self._preemption.leave(member)

    def free_at_ns(self, now_ns: int, member: DeviceMember) -> int:
        """Return when the next batch of a batcher is expected to be able to begin."""
        load_ns = 0 if self._is_loaded(member) else self._memory.load_ns(member.residence)
        level = self._level(member)
        if self._has_slot(level):
            return now_ns + load_ns
        ends_ns = [other.started_ns + owner.expected_ns(other) for other, owner in level.running.items()]
        if self._memory.loading is not None:
            ends_ns.append(self._memory.expected_end_ns())
            load_ns *= self._memory.loading != member.residence
        return max(now_ns, min(ends_ns)) + load_ns

    def hold(self, member: DeviceMember, on_loaded: Callable[[], None]) -> bool:
        """Keep a model in memory until :meth:`release`; return whether it is there.

        Otherwise the next dispatch begins to load it, and each dispatch after the load calls ``on_loaded``.
        """
        self._pinned[member] = on_loaded
        self._name(member)
        return self._is_loaded(member)

    def release(self, member: DeviceMember) -> None:
        """Undo :meth:`hold`."""
        self._pinned.pop(member, None)

    def dispatch(self, now_ns: int) -> bool:
        """Grant turns until no slot is free or no batcher has a batch to send.

        Returns:
            Whether to dispatch again in the next iteration of the loop, because a batch ran on the loop.
        """
        members = list(self._waiting)
        again = False
        try:
            for pinned, on_loaded in self._pinned.items():
                if self._is_loaded(pinned):
                    on_loaded()  # e.g. after another load that would have evicted it has failed
                elif self.is_free:
                    self._load(pinned, now_ns)
            for level in self._levels:
                again = self._grant_turns(level, now_ns) or again
        finally:  # set the timers of all batchers, even if one of them raised
            for member in members:
                member.settle()
        return again

    def may_dispatch(self, now_ns: int) -> bool:
        """Return whether a batcher has queued requests, or waits for a load, while a slot is free."""
        if not self.preemptive:
            return self.is_free and (bool(self._pinned) or any(member.is_waiting for member in self._waiting))
        return any(it.is_waiting and self.is_free_for(it) and self._pause_ends_ns(it) <= now_ns for it in self._waiting)

    def begin(self, execution: Execution, member: DeviceMember, now_ns: int) -> None:
        """Note that a batch takes a slot."""
        level = self._level(member)
        level.running[execution] = member
        level.interference.begin(execution, self._name(member), now_ns)
        self._account(member).batches += 1
        if level is self._front:
            for other in set(self._back.running.values()):
                other.claim.runs.yield_running()
        elif self._loop is not None:
            self._promotions.begin(self._loop, execution, member, now_ns)

    def end(self, execution: Execution, now_ns: int, *, succeeded: bool) -> None:
        """Note that a batch frees its slot; if others slowed it down, it counts as started later by that."""
        level = self._back if execution in self._back.running else self._front
        member = level.running.pop(execution, None)
        if member is None:
            return  # a batch of a closed loop
        self._account(member).busy_s += (now_ns - execution.started_ns) / 1e9
        if level is self._back:
            is_promoted = self._promotions.end(execution, member)
            self._preemption.end_background(execution, now_ns, is_promoted=is_promoted)
        elif self.preemptive:
            self._preemption.end_foreground(member, execution.started_ns, now_ns)
        expected_ns = member.expected_ns(execution) if succeeded else 0
        alone_ns = level.interference.end(execution, expected_ns, now_ns)
        if self.concurrency > 1:
            execution.effective_start_ns = max(now_ns - alone_ns, execution.started_ns)

    def statistics(self) -> DeviceStatistics:
        """Return a frozen snapshot; exporters read it in other threads, while batchers enter and leave."""
        named, memory = self._names.get, self._memory
        resident = {it.residence: name for it, name in self._names.copy().items()}
        slowdowns = {**self._front.interference.slowdowns(), **self._back.interference.slowdowns()}
        models = {
            name: DeviceModelStatistics(
                **attrs.asdict(account),
                slowdowns={str(other): how for (model, other), how in slowdowns.items() if model == name},
            )
            for name, account in sorted(self._accounts.items())
        }
        return DeviceStatistics(
            name=self.name,
            number=self._number,
            concurrency=self.concurrency,
            running=sum(len(level.running) for level in self._levels),
            waiting=tuple(sorted(named(it, it.source) for it in tuple(self._waiting) if it.is_waiting)),
            memory_bytes=self.memory_bytes,
            loaded=tuple(resident.get(it, it.source) for it in tuple(memory.bytes_of) if memory.is_loaded(it)),
            preemptive=self.preemptive,
            background=tuple(sorted(named(it, it.source) for it in self._preemption.background())),
            models=models,
        )

    def _count_promotion(self, member: DeviceMember) -> None:
        self._account(member).promoted += 1

    def _bind_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(
                f"{self!r} serves batchers of another event loop; make a device for each loop, or run these on one"
            )
        self._loop = loop
        for waiting in list(self._waiting):
            self.leave(waiting)
        for level in self._levels:
            level.running.clear()  # batches that a closed loop left behind occupy no slot
            level.interference.forget()
        self._preemption.forget()
        self._promotions.forget()
        self._memory.end(0, succeeded=False)
        self._pinned.clear()

    def _level(self, member: DeviceMember) -> _Level:
        return self._back if self._preemption.is_background(member) else self._front

    def _has_slot(self, level: _Level) -> bool:
        return len(level.running) + (self._memory.loading is not None) < self.concurrency

    def _pause_ends_ns(self, member: DeviceMember) -> int:
        """Return the end of the pause of a model in the foreground; 0: it does not pause."""
        if not self.preemptive or self._preemption.is_background(member):
            return 0
        is_busy = self._back.running or any(it.is_waiting and self._level(it) is self._back for it in self._waiting)
        return self._preemption.pause_ends_ns(member) if is_busy else 0

    def _grant_turns(self, level: _Level, now_ns: int) -> bool:
        """Grant turns to the models of a level until no slot is free there; return whether a batch ran on the loop."""
        while self._has_slot(level) and self._waiting:
            bids, decisions = self._bids(level, now_ns)
            if not bids:
                break
            at, batch = self._choose(bids, [member for member, _ in decisions], now_ns)
            member, decision = decisions[at]
            if not self._is_loaded(member):
                if not self._load(member, now_ns):
                    break  # the end of a running batch will make room
                continue
            for other, _ in decisions:
                self._account(other).waits += other is not member
            account = self._account(member)
            account.longest_wait_s = max(account.longest_wait_s, (now_ns - self._waiting.pop(member)) / 1e9)
            member.grant(batch, decision, now_ns)
            self.join(member, now_ns)
            if member.runs_inline:
                return True
        return False

    def _bids(self, level: _Level, now_ns: int) -> tuple[list[Bid], list[tuple[DeviceMember, Decision]]]:
        bids: list[Bid] = []
        decisions: list[tuple[DeviceMember, Decision]] = []
        for member in list(self._waiting):
            if self._level(member) is not level or self._pause_ends_ns(member) > now_ns:
                continue
            decision = member.propose(now_ns) if member.is_waiting else None
            if decision is None:
                self._waiting.pop(member, None)
                continue
            name = self._name(member)
            is_overdue = self._turns.is_overdue(name, now_ns)
            if not is_overdue and level.interference.keeps_apart(name):
                continue
            bid = self._bid(member, now_ns, decision.batch, level.interference.slowdown(name))
            if not bid.is_loaded:
                leaving = self._leaving(member, now_ns, self._pinned)
                others = (self._bid(it, now_ns) for it in self._names if it.residence in (leaving or ()))
                if leaving is None or (not is_overdue and is_in_vain(bid, others, now_ns)):
                    continue
            decisions.append((member, decision))
            bids.append(bid)
        return bids, decisions

    def _choose(
        self, bids: Sequence[Bid], members: Sequence[DeviceMember], now_ns: int
    ) -> tuple[int, Sequence[Ticket]]:
        """Return the position of a bid, and the batch to send."""
        loaded_for, self._loaded_for = self._loaded_for, None
        if loaded_for is not None and loaded_for in self._names:
            if loaded_for in members and self._is_loaded(loaded_for):  # else two models could evict each other for ever
                return (at := members.index(loaded_for)), self._turns.choose([bids[at]], now_ns)[1]
            self._turns.forget(self._names[loaded_for])  # it has nothing to send, so the load counts as its turn
        if self.memory_bytes is None:
            return self._turns.choose(bids, now_ns)
        others = (self._bid(it, now_ns) for it in self._names if it not in members and self._needs(it))
        idle = [bid for bid in others if bid.outlook is not None]
        return self._turns.choose(bids, now_ns, idle, self.memory_bytes - sum(self._memory.bytes_of.values()))

    def _needs(self, member: DeviceMember) -> int:
        return 0 if self.memory_bytes is None or member.residence is None else member.residence.memory_bytes

    def _is_loaded(self, member: DeviceMember) -> bool:
        return self.memory_bytes is None or member.residence is None or self._memory.is_loaded(member.residence)

    def _bid(self, member: DeviceMember, now_ns: int, batch: Sequence[Ticket] = (), slowdown: float = 1.0) -> Bid:
        """Return the bid of a model; without a batch, it has none to send."""
        name, load_ns = self._name(member), self._memory.load_ns(member.residence)
        outlook, weight = member.outlook(now_ns, batch), self.weights.get(name, 1.0)
        return Bid(name, batch, outlook, weight, slowdown, self._needs(member), load_ns, self._is_loaded(member))

    def _leaving(self, member: DeviceMember, now_ns: int, busy: Collection[DeviceMember]) -> list[Residence] | None:
        """Return the models to evict for another one, none of them busy; ``None``: it cannot be loaded."""
        if self._memory.loading is not None or member.residence is None:
            return None

        def residence_needed_ns(residence: Residence) -> float:
            sharing = [it for it in self._names if it.residence == residence]  # none if its batchers have stopped
            return min((needed_ns(self._bid(it, now_ns), it.is_waiting, now_ns) for it in sharing), default=math.inf)

        busy_residences = {it.residence for it in busy if it.residence is not None}
        return self._memory.victims(member.residence, self._needs(member), busy_residences, residence_needed_ns)

    def _load(self, member: DeviceMember, now_ns: int) -> bool:
        """Begin to load a model; return whether there is room for it."""
        leaving = self._leaving(member, now_ns, {*self._front.running.values(), *self._pinned})
        if leaving is None or member.residence is None:
            return False
        self._memory.begin(member.residence, member.residence.memory_bytes, leaving, now_ns)
        member.residence.load(leaving, functools.partial(self._loaded, member))
        return True

    def _loaded(self, member: DeviceMember, now_ns: int, succeeded: bool, retained: int) -> None:
        if self._memory.loading is not member.residence:
            return  # a load of a closed loop
        account, load_ns = self._account(member), self._memory.end(now_ns, succeeded=succeeded, retained=retained)
        account.load_s += load_ns / 1e9
        account.loads += 1
        self._turns.leave_out(load_ns, now_ns)
        self._loaded_for = member

    def _account(self, member: DeviceMember) -> Account:
        return self._accounts.setdefault(self._names.get(member, member.source), Account())  # it may have stopped

    def _name(self, member: DeviceMember) -> str:
        """Return the unique name of a model on the device."""
        if member not in self._names:
            self._names[member] = unique_name(member.source, set(self._names.values()))
        return self._names[member]

    def __repr__(self) -> str:
        running = sum(len(level.running) for level in self._levels)
        preemptive = ", preemptive=True" if self.preemptive else ""
        return f"Device({self.name!r}{preemptive}, running={running}/{self.concurrency}, waiting={len(self._waiting)})"

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()
