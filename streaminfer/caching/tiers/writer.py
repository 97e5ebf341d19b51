"""What is written to one tier, and erased from it: one thing after another, off the callers' paths.

The order is what erasing rests on. Puts and erasures of one tier go through one task, so that none runs beside another:

* an erasure goes before all puts that wait, and takes those that it matches with it;
* a put that is under way when it comes is waited for, and then erased;
* until it has succeeded nothing that it matches is put.

What would be put later was computed before the erasure, and is refused where it is handed in, or after it, and is no
concern of it.

**Bounds.** A tier has at most 256 puts, or 64 MiB, waiting; what comes beyond is dropped and counted. The later answer
to a key replaces one that waits. A put is given 5 s, an erasure 30 s a time. An erasure that failed is tried again:
after the time that an open breaker names, else after 1, 2, 4, … 30 s; where the policy has a log in a file, also by
the next process (``owed_erasures``).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer.caching.erasure.erasure import PendingErasure, is_erased
from streaminfer.caching.erasure.owed_erasures import Owed
from streaminfer.caching.erasure.retention_counts import RetentionCounts
from streaminfer.caching.tiers.protocol import Entry, Tier, TierStatistics
from streaminfer.caching.weigher import payload_bytes
from streaminfer.compliance.retention import Action, Holding

__all__ = ["PendingWrite", "TierUsage", "TierWriter"]

_LOGGER = logging.getLogger("streaminfer.caching")
_MOST_WAITING = 256
_MOST_REPLACED = 10_000
_MOST_BYTES = 64 * 2**20
_PUT_S = 5.0
_ERASE_S = 30.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0


@attrs.frozen(kw_only=True)
class TierUsage(Snapshot):
    """What a cache did with one of its tiers; counts since the cache was made.

    Counting rule: each read is one of ``hits``, ``stale_hits``, ``misses``, ``cut`` or ``withheld``; each write is one
    of ``stored``, ``refused``, ``dropped``, or one of ``waiting``.

    Attributes:
        name: of the tier.
        hits: reads that gave a fresh answer.
        stale_hits: reads that gave a stale one.
        misses: reads that gave nothing.
        cut: reads that were given up, since the request could wait no longer, and reads that failed.
        withheld: answers that were not used: something was erased during the read, an erasure of them is pending, the
            policy does not allow them there, or ``put_through`` put a newer one, which the tier did not take.
        stored: writes that the tier took; a deletion of one key is a write.
        refused: writes that it did not take.
        dropped: writes that were not tried: too many waited, a later answer to the same key came, the tier was stopped,
            or what was to be written had been erased.
        forbidden: answers that the policy does not allow there, or that have a subject where the tier does not encrypt;
            they are no writes.
        waiting: writes that wait at present.
        pending: erasures that are not done at present.
        tier: the tier's own.
    """

    name: str
    hits: int
    stale_hits: int
    misses: int
    cut: int
    withheld: int
    stored: int
    refused: int
    dropped: int
    forbidden: int
    waiting: int
    pending: int
    tier: TierStatistics


class PendingWrite:
    """A put that waits, or, without an entry, a deletion."""

    __slots__ = ("done", "entry", "key", "size")

    def __init__(self, key: str | bytes, entry: Entry | None) -> None:
        self.key = key
        self.entry = entry
        self.size = 0 if entry is None else payload_bytes(entry.value)
        self.done: asyncio.Future[bool] | None = None

    def settle(self, stored: bool) -> None:
        """Tells who waits for it."""
        if self.done is not None and not self.done.done():
            self.done.set_result(stored)


class TierWriter:
    """One tier of a cache. ``register``, ``pending`` and ``statistics`` are for any thread, all else for the loop's.

    Args:
        tier: the tier.
        name: what it is called here.
        position: 0 for the fastest.
        ledger: of the policy's log, if there is one.

    Attributes:
        pending: erasures that it has not done.
    """

    def __init__(self, tier: Tier, name: str, position: int, ledger: RetentionCounts | None) -> None:
        self.tier = tier
        self.name = name
        self.position = position
        self.pending: tuple[PendingErasure, ...] = ()
        self.hits = self.stale_hits = self.misses = self.cut = self.withheld = 0
        self.forbidden = 0
        self._stored = self._refused = self._dropped = 0
        self._ledger = ledger
        self._place = f"{name} {getattr(tier, 'place', '')}".strip()
        self._registering = threading.Lock()
        self._replaced: dict[str | bytes, int] = {}
        self._all_replaced_ns = 0
        self._waiting: dict[str | bytes, PendingWrite] = {}
        self._bytes = 0
        self._at_work = 0
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Event | None = None
        self._closing = False
        self._pause_s = _FIRST_PAUSE_S
        self._retry: asyncio.TimerHandle | None = None
        self._gone = (0, 0)

    # -- from any thread ----------------------------------------------------------------------------------------

    def register(self, erasing: PendingErasure) -> None:
        """From here on nothing that it matches is used of what the tier answers."""
        with self._registering:
            again = [it for it in self.pending if it.is_open(self.name) or not it.is_covered_by(erasing)]
            self.pending = (*again, erasing)

    def replace(self, key: str | bytes, stored_ns: int) -> None:
        """From here on nothing older is used of what the tier has for a key, until it has taken something newer."""
        self._replaced.pop(key, None)
        while len(self._replaced) >= _MOST_REPLACED:  # what is not known of each is held of all
            oldest = next(iter(self._replaced))
            self._all_replaced_ns = max(self._all_replaced_ns, self._replaced.pop(oldest))
        self._replaced[key] = stored_ns

    def is_replaced(self, key: str | bytes, entry: Entry) -> bool:
        """Whether a newer value of this key was put, which the tier does not have."""
        return entry.stored_ns < self._replaced.get(key, self._all_replaced_ns)

    def withdraw(self, erasing: PendingErasure) -> None:
        """It is done."""
        with self._registering:
            self.pending = tuple(it for it in self.pending if it is not erasing)

    def statistics(self) -> TierUsage:
        """A frozen snapshot."""
        return TierUsage(
            name=self.name,
            hits=self.hits,
            stale_hits=self.stale_hits,
            misses=self.misses,
            cut=self.cut,
            withheld=self.withheld,
            stored=self._stored,
            refused=self._refused,
            dropped=self._dropped,
            forbidden=self.forbidden,
            waiting=len(self._waiting) + self._at_work,
            pending=len(self.pending),
            tier=self.tier.statistics(),
        )

    # -- on the loop --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the tier and begins with what is pending, also from before this process."""
        if self._ledger is not None:
            for owed in self._ledger.owed_by(self._place):
                erasing = PendingErasure(owed.subject, owed.tag, [self.name])
                if not any(it.is_covered_by(erasing) for it in self.pending):
                    self.register(erasing)
                    erasing.arm(0)
        await self.tier.start()
        self._closing = False
        self._wake = asyncio.Event()
        self._gone = self._gone_by_itself()
        self._task = asyncio.get_running_loop().create_task(self._work(), name=f"streaminfer cache to {self.name}")

    async def stop(self, *, drain: bool) -> None:
        """Ends what waits and stops the tier.

        Args:
            drain: write it first; otherwise it is dropped. A tier that takes too long for one put gets no more.
        """
        task, self._task = self._task, None
        self._closing = True
        if task is None:
            return
        try:
            if drain:
                self.wake()
                await asyncio.wait([task])
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            self._drop(lambda _: True)
            for erasing in self.pending:
                if erasing.armed and erasing.is_open(self.name):
                    self._failed(erasing, "the tier was stopped; erased when it starts again")
            self.tell_what_went()
            await self.tier.stop()

    @property
    def runs(self) -> bool:
        """Whether it takes anything: it was started, and its event loop still lives."""
        task = self._task
        return task is not None and not task.done() and not task.get_loop().is_closed()

    def begin(self, erasing: PendingErasure) -> None:
        """An erasure is armed: it begins now, or when the tier starts."""
        if not self.runs:
            if erasing.is_open(self.name):
                self._failed(erasing, "the tier does not run; erased when it starts")
        else:
            self.wake()

    def wake(self) -> None:
        """There is something to do."""
        if self._wake is not None:
            self._wake.set()

    def put(self, write: PendingWrite) -> None:
        """Puts something into the queue, if there is room."""
        before = self._waiting.pop(write.key, None)
        if before is not None:
            self._bytes -= before.size
            self._dropped += 1
            before.settle(False)
        full = len(self._waiting) >= _MOST_WAITING or (self._waiting and self._bytes + write.size > _MOST_BYTES)
        if full or not self.runs or self._closing:
            self._dropped += 1
            write.settle(False)
            return
        self._waiting[write.key] = write
        self._bytes += write.size
        self.wake()

    def delete(self, key: str | bytes) -> asyncio.Future[bool]:
        """Puts the deletion of a key into the queue; whether the tier made it."""
        write = PendingWrite(key, None)
        write.done = done = asyncio.get_running_loop().create_future()
        self.put(write)
        return done

    async def inventory(self, classes: tuple[str, ...], *, here: bool) -> list[Holding]:
        """What the tier holds, by data class; where it cannot say, or does not run, a holding without numbers.

        Args:
            classes: names of data classes.
            here: whether the tier belongs to this event loop.
        """
        held = None
        if here and self.runs:
            try:
                held = await self.tier.inventory(classes)
            except Exception as error:
                _LOGGER.warning("the tier %s cannot say what it holds: %s", self.name, error, exc_info=error)
        if held is None:
            return [Holding(self.name, "", None, None, None)]
        now_ns = self.tier.wall_clock()
        return [
            Holding(self.name, data_class, entries, max(now_ns - oldest_ns, 0) / 1e9, size)
            for data_class, entries, oldest_ns, size in held
        ]

    def has_waiting(self, key: str | bytes) -> bool:
        """Whether something waits to be put under a key."""
        return key in self._waiting

    def tell_what_went(self) -> None:
        """Counts, for the log, what the tier purged and evicted since the last time."""
        if self._ledger is not None:
            before, self._gone = self._gone, self._gone_by_itself()
            ways: tuple[Action, Action] = ("purged", "evicted")
            for action, reason, then, now in zip(
                ways, ("its time had passed", "no room"), before, self._gone, strict=True
            ):
                if now > then:
                    self._ledger.count(action, self.name, "", reason, now - then)

    def _gone_by_itself(self) -> tuple[int, int]:
        seen = self.tier.statistics()
        return seen.purged, seen.evicted

    async def _work(self) -> None:
        wake = self._wake
        assert wake is not None  # noqa: S101 - `start` made it
        while True:
            erasing = self._next_erasing()
            if erasing is not None:
                await self._erase(erasing)
            elif self._waiting:
                await self._put(self._take_next())  # no local name: it would keep the answer while nothing is written
            elif self._closing:
                return
            else:
                wake.clear()
                await wake.wait()

    def _take_next(self) -> PendingWrite:
        write = self._waiting.pop(next(iter(self._waiting)))
        self._bytes -= write.size
        return write

    def _next_erasing(self) -> PendingErasure | None:
        for erasing in self.pending:
            if erasing.armed and (erasing.is_open(self.name) or self._retry is None):
                return erasing
        return None

    async def _put(self, write: PendingWrite) -> None:
        if write.entry is not None and is_erased(write.entry, self.pending):
            self._dropped += 1
            write.settle(False)
            return
        stored = False
        self._at_work = 1
        try:
            async with asyncio.timeout(_PUT_S):
                if write.entry is None:
                    stored = await self.tier.delete(write.key)
                else:
                    stored = await self.tier.put(write.key, write.entry)
        except TimeoutError:
            _LOGGER.warning("the tier %s did not take an answer within %g s", self.name, _PUT_S)
            if self._closing:
                self._drop(lambda _: True)
        except Exception as error:  # a tier raises nothing of its medium; whatever it is costs one write
            _LOGGER.warning("the tier %s did not take an answer: %s", self.name, error, exc_info=error)
        finally:
            self._at_work = 0
            if stored:
                self._replaced.pop(write.key, None)
            self._stored += stored
            self._refused += not stored
            write.settle(stored)

    async def _erase(self, erasing: PendingErasure) -> None:
        if self._ledger is not None and self._ledger.is_held(erasing.subject, erasing.tag):
            self._try_again(_LONGEST_PAUSE_S)
            self._failed(erasing, "a legal hold began before it was made")
            return
        self._drop(lambda it: it.entry is not None and erasing.matches(it.entry.subject, it.entry.tags))
        failures: list[BaseException] = []
        count = 0
        keys = self.tier.keys
        if keys is not None and erasing.subject is not None:
            try:
                await asyncio.get_running_loop().run_in_executor(None, keys.destroy, erasing.subject)
            except Exception as error:  # noqa: BLE001 - reported, and tried again
                failures.append(error)
        try:
            async with asyncio.timeout(_ERASE_S):
                count = await self.tier.erase(subject=erasing.subject, tag=erasing.tag)
        except Exception as error:  # noqa: BLE001 - the same
            failures.append(error)
        if not failures:
            self._pause_s = _FIRST_PAUSE_S
            self.withdraw(erasing)
            self._record("erased", erasing, count, "asked for")
            if self._ledger is not None:
                self._ledger.settle(Owed(self._place, erasing.subject, erasing.tag))
            erasing.done(self.name, count)
            return
        self._try_again(max(getattr(error, "retry_after_s", 0.0) or 0.0 for error in failures))
        self._failed(erasing, "; ".join(f"{type(error).__name__}: {error}" for error in failures))

    def _failed(self, erasing: PendingErasure, why: str) -> None:
        if erasing.is_open(self.name):  # once, and not at every attempt
            self._record("erase_failed", erasing, 0, why)
            if self._ledger is not None:
                self._ledger.owe(Owed(self._place, erasing.subject, erasing.tag))
        erasing.fail(self.name, why)

    def _record(self, action: Action, erasing: PendingErasure, count: int, reason: str) -> None:
        if self._ledger is not None:
            self._ledger.record(
                action, where=self.name, count=count, reason=reason, subject=erasing.subject, tag=erasing.tag
            )

    def _try_again(self, after_s: float) -> None:
        if self._retry is not None:
            return  # others failed before; new failures do not put them off
        after_s = after_s or self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._retry = asyncio.get_running_loop().call_later(after_s, self._again)

    def _again(self) -> None:
        self._retry = None
        self.wake()

    def _drop(self, which: Callable[[PendingWrite], Any]) -> None:
        for key, write in list(self._waiting.items()):
            if which(write):
                del self._waiting[key]
                self._bytes -= write.size
                self._dropped += 1
                write.settle(False)
