"""Use of one tier: checks reads, and makes writes and erasures one after another, without delaying callers.

A read must not return an entry that a pending erasure or put will remove or replace. Erasures rely on the order of
writes. One task makes the puts and erasures of a tier, so that no two run at once:

* an erasure goes before all queued puts, and drops those that it matches;
* it waits for the running put, and then erases what that put stored;
* until it has succeeded, the writer puts nothing that it matches, and instead removes the older value of the key.

**Bounds.** A tier has at most 256 puts, or 64 MiB, and 256 removals queued; the writer drops others, but no deletion. A
later value of a key replaces a queued one. If that is below its minimum age and the tier preserves such values, the
writer puts both, in order, while there is room. A put may take 5 s; an attempt of an erasure may take 30 s for the keys
and 30 s for the entries.
The writer retries failed erasures when an open breaker allows it, else after 1, 2, 4, … 30 s, in turn; if the policy
has a log file, the next process does so too. An erasure that a legal hold forbids does not delay the others. If a key
provider hangs, the writer does not call it again, or wait for it, until it has returned.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from streaminfer._internal.error_log import ErrorLog, Log
from streaminfer._internal.snapshot import Snapshot
from streaminfer.caching.defensive_copy import freeze
from streaminfer.caching.erasure.erasure import PendingErasure
from streaminfer.caching.erasure.retention_counts import DELETED, REASONS, RetentionCounts
from streaminfer.caching.table._slots_cy import NEVER
from streaminfer.caching.tiers.key_destruction import KeyDestruction
from streaminfer.caching.tiers.newer_values import NewerValues
from streaminfer.caching.tiers.pending_erasures import PendingErasures
from streaminfer.caching.tiers.pending_write import PendingWrite, WriteQueue
from streaminfer.caching.tiers.protocol import Entry, Tier, TierHit, TierStatistics, in_ns
from streaminfer.caching.tiers.time_limit import within
from streaminfer.caching.weigher import payload_bytes
from streaminfer.compliance.retention import Holding
from streaminfer.errors import says_retry_after_s, text_of_error

if TYPE_CHECKING:
    from streaminfer.caching.memory import Memory

__all__ = ["TierUsage", "TierWriter"]

_LOGGER = Log("streaminfer.caching")
PUT_TIMEOUT_S = 5.0
ERASE_TIMEOUT_S = 30.0
FIRST_RETRY_S = 1.0
MAX_RETRY_S = 30.0


@attrs.frozen(kw_only=True)
class TierUsage(Snapshot):
    """Statistics of one tier's use by a cache, since the cache was made.

    Counting rule: each read is one of ``hits``, ``stale_hits``, ``misses``, ``read_timeouts`` or ``discarded``; each
    write is one of ``stored``, ``rejected`` or ``dropped``, or still ``queued``.

    Attributes:
        name: of the tier.
        hits: reads that returned a fresh value.
        stale_hits: reads that returned a stale value.
        misses: reads that returned nothing.
        read_timeouts: reads that took longer than the request could wait, and reads that failed.
        discarded: values that were read but not used: an erasure came during the read or is pending, the policy does
            not allow them there, or the tier still had an older value than ``put_through`` put.
        stored: writes that the tier made; the deletion of a key is a write.
        rejected: writes that the tier did not make.
        dropped: writes that were not tried: no room in the queue, a later value of the key, a stop, or an erasure.
        disallowed: values that the policy does not allow there, or with a subject on a tier that does not encrypt. They
            do not count as writes, nor do the removals of older values in their place.
        queued: writes and removals that are queued or running.
        pending: erasures that the tier has not carried out.
        tier: the tier's own statistics.
    """

    name: str
    hits: int
    stale_hits: int
    misses: int
    read_timeouts: int
    discarded: int
    stored: int
    rejected: int
    dropped: int
    disallowed: int
    queued: int
    pending: int
    tier: TierStatistics


_UNCOUNTED = {"name", "queued", "pending", "tier"}
_COUNTED = tuple(field.name for field in attrs.fields(TierUsage) if field.name not in _UNCOUNTED)


class TierWriter:
    """One tier of a cache. Any thread may use ``erasures`` and ``statistics``; the rest is for its loop.

    Args:
        tier: the tier.
        name: its name in this cache.
        position: 0 for the fastest.
        counts: counts for the policy's log.
        destruction: destroys the keys of the tier's provider, for all tiers that use it.

    Attributes:
        erasures: those that the tier has not carried out; the cache uses no entry of the tier that one of them matches.
    """

    def __init__(
        self, tier: Tier, name: str, position: int, counts: RetentionCounts, destruction: KeyDestruction
    ) -> None:
        self.tier = tier
        self.name = name
        self.position = position
        self.hits = self.stale_hits = self.misses = self.read_timeouts = self.discarded = 0
        self.stored = self.rejected = self.dropped = self.disallowed = 0
        self._counts = counts
        self.place = f"{name} {tier.place}".strip()
        self.erasures = PendingErasures()
        self.destruction = destruction
        self._has_overrun = False  # whether a put did not end in time, so that it may still seal a value
        self._newer = NewerValues()
        self._queue = WriteQueue(preserves=tier.preserves)
        self._leases: dict[str | bytes, bytes] = {}  # tokens of leases to end, unless a queued put does so
        self._writes_in_progress = 0
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._closing = False
        self._pause_s = FIRST_RETRY_S
        self._retry_at = -math.inf  # on the loop's clock: when failed erasures are tried again
        self._counted = tier.statistics()  # counts at the last `count_removals`
        self._failures = ErrorLog("streaminfer.caching")

    # -- from any thread ----------------------------------------------------------------------------------------

    def replace(self, key: str | bytes, *, deletes: bool = False) -> None:
        """Note a newer value of a key, or its deletion; until the tier stores that, the cache uses no older value."""
        self._newer.replace(key, self.tier.wall_clock(), deletes=deletes)

    def stored_ns(self, key: str | bytes, age_ns: int) -> int:
        """Return when a value was computed, on the tier's clock; a value of age 0 counts as its key's newest."""
        now_ns = self.tier.wall_clock()
        return max(now_ns - age_ns, 0) if age_ns else max(now_ns, self._newer.since_ns(key))

    def excluded(self, key: str | bytes) -> Callable[[Entry], bool]:
        """Return a function that tells which entries of a key must not be used, as of this call.

        These match an erasure that the tier has not made, or are older than a value or deletion that it has not stored.
        """
        is_erased, replaced_ns = self.erasures.matcher(), self._newer.since_ns(key)
        return lambda entry: entry.stored_ns < replaced_ns or is_erased(entry)

    def statistics(self) -> TierUsage:
        """Return a frozen snapshot."""
        counted = {name: getattr(self, name) for name in _COUNTED}
        waits = {"queued": len(self._queue) + self._writes_in_progress, "pending": len(self.erasures.pending)}
        return TierUsage(name=self.name, **counted, **waits, tier=self.tier.statistics())

    # -- on the loop --------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the tier, and begin its pending erasures."""
        await self.tier.start()
        self._closing = False
        self._wake, self._pid = asyncio.Event(), os.getpid()  # belong to this event loop and process
        self._counted = self.tier.statistics()
        self._retry_at = -math.inf
        self.erasures.end_holds()
        self._task = asyncio.get_running_loop().create_task(self._work(), name=f"streaminfer cache to {self.name}")

    async def stop(self, *, drain: bool) -> None:
        """End the queued writes and stop the tier.

        Args:
            drain: true makes the queued writes first, until one takes too long; false drops them.
        """
        task, self._task = self._task, None
        self._closing = True
        if task is None:
            return
        try:
            if drain:
                self._wake.set()
                await asyncio.wait([task])
        finally:
            task.cancel()
            try:
                await asyncio.gather(task, return_exceptions=True)
            finally:  # stops the tier also if this stop is cancelled here
                self._drop(lambda _: True)
                self._leases.clear()
                for erasing in self.erasures.pending:
                    if erasing.armed and erasing.is_untried(self.name):
                        self._failed(erasing, "the tier was stopped; erased when it starts again")
                self.count_removals()
                await self.tier.stop()

    @property
    def runs(self) -> bool:
        """True if it accepts writes: it was started in this process, and its event loop is not closed."""
        task = self._task
        return task is not None and self._pid == os.getpid() and not task.done() and not task.get_loop().is_closed()

    def begin(self, erasing: PendingErasure) -> None:
        """Begin an armed erasure now, or when the tier starts."""
        if self.runs:
            self._wake.set()
            return
        try:  # makes entries on the stopped tier unreadable; the tier erases them when it starts
            self.destruction.make_now(erasing)
        except Exception as error:
            _LOGGER.warning("the keys of a subject could not be destroyed yet: %s", error, exc_info=error)
        if self._has_overrun:
            self.destruction.repeat(erasing)
        if erasing.is_untried(self.name):
            self._failed(erasing, "the tier does not run; erased when it starts")

    def put(self, key: str | bytes, entry: Entry | None, *, deletes: bool = False) -> asyncio.Future[bool]:
        """Queue a put unless the queue is full, or for ``None`` a removal or deletion; return whether it was made."""
        if entry is not None:
            self._newer.store(entry.stored_ns)
        size = 0 if entry is None else payload_bytes(entry.value)
        write = PendingWrite(key, entry, size, asyncio.get_running_loop().create_future(), deletes)
        accepts = self.runs and not self._closing
        for rejected in self._queue.add(write, self.tier.wall_clock(), accepts=accepts):
            self._reject(rejected)
        self._wake.set()
        return write.done

    async def inventory(self, classes: tuple[str, ...]) -> list[Holding]:
        """Return the tier's entries by data class; one holding without numbers if it cannot count or does not run.

        Args:
            classes: names of data classes.
        """
        inventory = None
        if self._task is not None and self._task.get_loop() is asyncio.get_running_loop() and self.runs:
            try:
                inventory = await self.tier.inventory(classes)
            except Exception as error:
                _LOGGER.warning("the tier %s cannot say what it holds: %s", self.name, error, exc_info=error)
        if inventory is None:
            return [Holding(self.name, "", None, None, None)]
        now_ns = self.tier.wall_clock()
        return [
            Holding(self.name, data_class, entries, max(now_ns - oldest_ns, 0) / 1e9, size)
            for data_class, entries, oldest_ns, size in inventory
        ]

    def judge(
        self, key: str | bytes, entry: Entry | None, longest_ns: int, before: Callable[[Entry], bool], memory: Memory
    ) -> TierHit | None:
        """Count a read, and return its value if the cache may use it.

        Args:
            key: of the value.
            entry: the result of the read.
            longest_ns: longest time for which a value is fresh, from when it was computed.
            before: ``excluded`` at the beginning of the read; it applies even if the tier has made its erasures since.
            memory: of the cache.
        """
        if entry is None:
            self.misses += 1
            return None
        policy, longest_stale_ns = memory.freshness.policy, memory.freshness.stale_ns
        rule = None if policy is None else policy.rule(entry.tags)
        disallowed = rule is not None and not rule.permits(self.tier)
        if disallowed or before(entry) or self.excluded(key)(entry):
            self.discarded += 1
            return None
        age_ns = max(self.tier.wall_clock() - entry.stored_ns, 0)
        stale_ns = min(in_ns(entry.stale_s), longest_stale_ns)
        fresh_ns = longest_ns
        if entry.ttl_s is not None:
            fresh_ns = min(fresh_ns, max(in_ns(entry.ttl_s) - in_ns(entry.stale_s), 0))
        if rule is not None:
            fresh_ns = min(fresh_ns, in_ns(rule.max_age_s) - longest_stale_ns)
        if fresh_ns != NEVER and age_ns >= fresh_ns + stale_ns:
            self.misses += 1
            return None
        is_stale = age_ns >= fresh_ns
        self.stale_hits += is_stale
        self.hits += not is_stale
        about, times_ns = (entry.subject, tuple(sorted(entry.tags))), (memory.now() - age_ns, fresh_ns, stale_ns)
        return TierHit(freeze(entry.value), about, self.name, self.position, *times_ns, is_stale)

    def open_lease(self, key: str | bytes, token: bytes) -> None:
        """End the lease of a key; if the computed value is queued, wait for that write, and do so only if it fails."""
        if self.runs:
            self._leases[key] = token
            self._wake.set()

    def count_removals(self) -> None:
        """Count the entries that the tier purged and evicted since the last call, for the log."""
        before, self._counted = self._counted, self.tier.statistics()
        self._counts.count("purged", self.name, "", REASONS["expired"], self._counted.purged - before.purged)
        self._counts.count("evicted", self.name, "", REASONS["evicted"], self._counted.evicted - before.evicted)

    async def _work(self) -> None:
        wake, loop = self._wake, asyncio.get_running_loop()
        while True:
            now = loop.time()
            erasing = self.erasures.next(now, may_retry=now >= self._retry_at)
            lease = next((key for key in self._leases if key not in self._queue), None)
            if erasing is not None:
                await self._erase(erasing)
            elif lease is not None:
                await self._open(lease, self._leases.pop(lease))
            elif self._queue:  # no local name, which would keep the value alive while the task waits
                await self._put(self._queue.pop())
            elif self._closing:
                return
            else:
                wake.clear()
                again_at = self._retry_at if now < self._retry_at else self.erasures.held_until()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(again_at):
                        await wake.wait()

    def _reject(self, write: PendingWrite) -> None:
        self.dropped += write.entry is not None or write.deletes
        self._settle(write, False)

    def _settle(self, write: PendingWrite, stored: bool) -> None:
        if not write.done.done():
            write.done.set_result(stored)
        if stored and write.entry:  # a stored entry ends its lease
            self._leases.pop(write.key, None)

    async def _put(self, write: PendingWrite) -> None:
        if write.entry is not None and self.erasures.matches(write.entry):
            self._withdraw(write)
            return
        stored = False
        self._writes_in_progress = 1
        try:
            stored = await within(PUT_TIMEOUT_S, self._make(write))
        except asyncio.CancelledError:
            self._has_overrun = True
            raise
        except TimeoutError:
            self._has_overrun = True
            _LOGGER.warning("the tier %s did not take an answer within %g s", self.name, PUT_TIMEOUT_S)
            if self._closing:
                self._drop(lambda _: True)
        except Exception as error:  # noqa: BLE001 - of a tier that is not to raise: it costs one write, counted
            self._failures.report(f"a write to the tier {self.name}", error)
        finally:
            self._writes_in_progress = 0
            for erasing in self.erasures.matching(write.entry):  # registered during the put
                self.destruction.repeat(erasing)
            if stored and not (write.entry and self.excluded(write.key)(write.entry)):
                self._newer.settle(write.key)  # otherwise a newer value or a deletion is queued
            if write.entry is not None or write.deletes:
                self.stored += stored
                self.rejected += not stored
            self._settle(write, stored)

    async def _open(self, key: str | bytes, token: bytes) -> None:
        try:
            await within(PUT_TIMEOUT_S, self.tier.open_lease(key, token))
        except Exception as error:  # noqa: BLE001 - of a tier that is not to raise: the lease ends at its time
            self._failures.report(f"the end of a lease of the tier {self.name}", error)

    async def _make(self, write: PendingWrite) -> bool:
        if write.entry is not None:
            return await self.tier.put(write.key, write.entry)
        if write.deletes:
            before = self.tier.statistics().erased
            deleted = await self.tier.delete(write.key)
            self._counts.count("removed", self.name, "", DELETED, self.tier.statistics().erased - before)
            return deleted
        if self._counts.has_holds and not self.tier.preserves:
            older = await self.tier.get(write.key)
            if older is not None and self._counts.holds_entry(older.subject, older.tags):
                return False
        return await self.tier.supersede(write.key)

    async def _erase(self, erasing: PendingErasure) -> None:
        if self._counts.is_held(**erasing.selection):
            self.erasures.hold(erasing, asyncio.get_running_loop().time() + MAX_RETRY_S)
            self._failed(erasing, "a legal hold began before it was made")
            return
        for write in self._queue.drop(lambda it: it.entry and erasing.matches(it.entry.subject, it.entry.tags)):
            self._withdraw(write)
        failures: list[BaseException] = []
        count = 0
        try:
            await self.destruction.make(erasing, ERASE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - reported, and tried again
            failures.append(error)
        try:
            count = await within(ERASE_TIMEOUT_S, self.tier.erase(**erasing.selection))
            if self._has_overrun:  # such a put, which has ended by now, may have made a new key
                self.destruction.repeat(erasing)
                await self.destruction.make(erasing, ERASE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - the same
            failures.append(error)
        if not failures:
            self._pause_s = FIRST_RETRY_S
            self.erasures.end(erasing)
            self._counts.record("erased", where=self.name, count=count, reason="asked for", **erasing.selection)
            self._counts.owe(self.place, is_owed=False, **erasing.selection)
            erasing.note(self.name, count)
            return
        self._try_again(max(says_retry_after_s(error) for error in failures))
        self._failed(erasing, "; ".join(text_of_error(error) for error in failures))

    def _failed(self, erasing: PendingErasure, reason: str) -> None:
        if erasing.is_untried(self.name):  # only the first failure, not every attempt
            # the file for the next process first: if this one died with only the record, that would stay pending
            self._counts.owe(self.place, is_owed=True, **erasing.selection)
            self._counts.record("erase_failed", where=self.name, count=0, reason=reason, **erasing.selection)
        erasing.note(self.name, reason)
        self.erasures.fail(erasing)

    def _try_again(self, after_s: float) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._retry_at:  # otherwise a retry is already scheduled, and new failures do not delay it
            self._retry_at = now + (after_s or self._pause_s)
            self._pause_s = min(2 * self._pause_s, MAX_RETRY_S)

    def _withdraw(self, write: PendingWrite) -> None:
        """Reject a write that a pending erasure forbids; it is still later than what the tier has."""
        self._reject(write)
        if write.key not in self._queue:
            self.replace(write.key, deletes=True)
            removal = write._replace(entry=None, size=0)
            self._queue.add(removal, self.tier.wall_clock(), accepts=True)

    def _drop(self, which: Callable[[PendingWrite], Any]) -> None:
        for write in self._queue.drop(which):
            self._reject(write)
