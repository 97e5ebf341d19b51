"""The tiers of a cache: read after a miss in memory, written in the background, erased together with memory.

**Reading** happens inside single flight, once for all callers of a key, the fastest tier first. The cache *promotes* a
value that it finds in a tier: it stores the value in memory and in the faster tiers, with its age, tags, subject and
class.

**Time.** ``read_budget`` limits the time that the tiers may take together. The limit is at most one second. Of the time
that a request has left, it is at most half, and leaves enough for the computation as far as earlier ones show. A caller
that joins the flight with less time left shortens the read. A tier that stalls therefore makes no request late that
could have been computed in time.

**Writing.** Each tier has one `TierWriter`. A computed value is written with its fresh and stale time, counted from the
instant at which it was computed.

**Erasing.** Three rules together ensure that no value from before an erasure comes back:

* the cache registers an erasure with every tier, then erases memory, which changes its ``erasures``; only then do the
  tiers begin;
* it stores nothing, in memory or a tier, that was computed or read from a tier before its key was erased
  (``erased_since``);
* a tier makes puts and erasures one after another. Until an erasure is done, the cache neither reads from nor writes to
  that tier any entry that the erasure matches, and ignores reads that began before the erasure.

**Life.** Each user of the cache on an event loop holds its tiers: they start with the first and stop with the last.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from streaminfer._internal.error_log import ErrorLog, Log
from streaminfer._internal.validation import check_instance
from streaminfer._runtime.lifecycle import start_owned, stop_all, stop_together
from streaminfer.caching.erasure.erasure import PendingErasure
from streaminfer.caching.erasure.retention_counts import RetentionCounts
from streaminfer.caching.table._slots_cy import NEVER
from streaminfer.caching.tiers.encryption import KeyProvider
from streaminfer.caching.tiers.key_destruction import KeyDestruction
from streaminfer.caching.tiers.protocol import Entry, Notice, Tier, TierHit, in_ns
from streaminfer.caching.tiers.tier_wait import TierWait
from streaminfer.caching.tiers.writer import TierUsage, TierWriter
from streaminfer.compliance.retention import Holding, Rule

if TYPE_CHECKING:
    from streaminfer.caching.freshness import About
    from streaminfer.caching.memory import Memory
    from streaminfer.compliance.retention_log import RetentionLog

__all__ = ["TierSet"]

_LOGGER = Log("streaminfer.caching")
LOG_INTERVAL_S = 5.0
_ABSENT: Any = object()


class TierSet:
    """The tiers of one cache. Any thread may call ``erase`` and ``statistics``; the rest is for the loop of the tiers.

    Args:
        tiers: the fastest first.
        memory: of the cache.

    Raises:
        TypeError: an element of ``tiers`` is not a tier.
        ValueError: the policy requires encryption, and a tier does not encrypt.
    """

    def __init__(self, tiers: Sequence[Any], memory: Memory) -> None:
        policy = memory.freshness.policy
        self._counts = RetentionCounts(None, memory.now) if memory.retention is None else memory.retention.counts
        self.workers: list[TierWriter] = []
        self.leasing: TierWriter | None = None
        for position, tier in enumerate(tiers):
            check_instance("tiers", tier, Tier, "tiers, such as DiskTier and RedisTier")
            same = sum(other.tier.name == tier.name for other in self.workers)
            name = tier.name if not same else f"{tier.name} {same + 1}"
            if policy is not None:
                policy.check_tier(name, tier)
            self.workers.append(TierWriter(tier, name, position, self._counts, self._destruction_of(tier.keys)))
            if self.leasing is None and tier.lease_s:
                self.leasing = self.workers[-1]
            tier.hear(partial(self._on_notice, position))
        self._policy = policy
        self._memory = memory
        self._home: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()  # of the process that started the tiers
        self._log_timer: asyncio.TimerHandle | None = None
        self._warned = False
        self._without_keys: set[str] = set()
        self._underway: dict[str | bytes, int] = {}
        self._failures = ErrorLog("streaminfer.caching")

    def _destruction_of(self, keys: KeyProvider | None) -> KeyDestruction:
        """Return the destruction of a provider's keys, which is the same for all tiers that use the provider."""
        shared = (it.destruction for it in self.workers if it.destruction.keys is keys)
        return next(shared, None) or KeyDestruction(keys)

    # -- life ---------------------------------------------------------------------------------------------------

    async def hold(self, owner: object) -> None:
        """Start the tiers, unless another owner has started them.

        Raises:
            RuntimeError: they run on another event loop or in another process, or a tier was already started elsewhere.
            BackendError: a tier cannot start; the tiers before it are stopped again.
        """
        if self._home is None:
            self._home, self._pid = asyncio.get_running_loop(), os.getpid()
        if self._home is not asyncio.get_running_loop():
            lost = "were not stopped before their event loop was closed: make a new cache, with new tiers"
            reason = lost if self._home.is_closed() else "run on another event loop"
            if self._pid != os.getpid():
                reason = "were started before a fork, in another process: make a new cache, with new tiers, in this one"
            raise RuntimeError(f"the tiers of this cache {reason}")
        await start_owned(owner, self)

    async def release(self, owner: object, *, drain: bool) -> None:
        """Stop the tiers, unless another owner holds them.

        Args:
            owner: the owner that releases them.
            drain: whether to finish the queued writes first.
        """
        await stop_all(owner, [self], drain=drain)

    async def start(self) -> None:
        """Start the tiers; called by `hold`."""
        self._home, self._pid = asyncio.get_running_loop(), os.getpid()
        try:
            self._register_owed()
            for worker in self.workers:
                try:
                    await worker.start()
                except RuntimeError as error:
                    hint = "a cache starts its tiers itself: start none yourself, and give none to two caches"
                    raise RuntimeError(f"tier {worker.name}: {error}; {hint}") from error
        except BaseException:
            await self.stop(drain=False)  # ignores tiers that did not start
            raise
        self._warned = False
        if self._policy is not None and self._policy.log is not None:
            self._log_regularly()

    def _register_owed(self) -> None:
        """Register the erasures that an earlier process left: each once, so that its keys are destroyed once."""
        owing: dict[tuple[str | None, str | None], list[TierWriter]] = {}
        for worker in self.workers:
            pending = {(it.subject, it.tag) for it in worker.erasures.pending}
            for selection in self._counts.owed_by(worker.place):
                if selection not in pending:
                    owing.setdefault(selection, []).append(worker)
        for (subject, tag), workers in owing.items():
            erasing = PendingErasure(subject, tag, [worker.name for worker in workers])
            for worker in workers:
                worker.erasures.add(erasing)
            erasing.arm(0)

    async def stop(self, *, drain: bool = True) -> None:
        """Stop the tiers; called by `release`."""
        if self._log_timer is not None:
            self._log_timer.cancel()
            self._log_timer = None
        # all at once, so that no tier waits for another's timeouts
        try:
            await stop_together(worker.stop(drain=drain) for worker in self.workers)
        finally:
            self._home = None  # first: if the stop is cancelled during the log write, the tiers are stopped
            await self._counts.settle(final=True)

    def _log_regularly(self) -> None:
        """Write counts to the log every 5 s, so that the log of an idle cache is up to date."""
        self.count_removals()
        self._counts.flush()
        self._log_timer = asyncio.get_running_loop().call_later(LOG_INTERVAL_S, self._log_regularly)

    @property
    def run_here(self) -> bool:
        """True if the tiers run on this event loop; logs a warning once if they do not."""
        if self._home is asyncio.get_running_loop():
            return True
        if not self._warned:
            self._warned = True
            _LOGGER.warning(
                "the tiers of a cache are not used: they do not run on this event loop; a Stack starts them, "
                "or `async with cache:`"
            )
        return False

    # -- reading ------------------------------------------------------------------------------------------------

    @contextmanager
    def underway(self, key: str | bytes) -> Iterator[None]:
        """Read or compute a value in this block; the result is not stored if `put_through` puts a value meanwhile.

        Memory alone cannot show this, because it may have rejected or evicted the newer value.
        """
        underway = self._underway if self._home is asyncio.get_running_loop() else {}
        underway[key] = underway.get(key, 0) + 1
        try:
            yield
        finally:
            underway[key] -= 1
            if not underway[key]:
                del underway[key]

    async def read(
        self,
        key: str | bytes,
        *,
        granted_ns: int,
        longest_ns: int = NEVER,
        only_fresh: bool = False,
        wait: TierWait | None = None,
    ) -> TierHit | None:
        """Return a fresh value of the fastest tier that has one, else a stale one, else ``None``.

        Call it within `underway`. It stores a fresh value in memory. It returns ``None`` if the tiers do not run on
        this event loop, or if the key was erased, deleted or put during the read: the value may be the old one.

        Args:
            key: of the value.
            granted_ns: nanoseconds that the tiers may take together.
            longest_ns: longest time for which a value is fresh, from when it was computed.
            only_fresh: whether to ignore stale values.
            wait: time limit of the flight that reads; ``None``: no caller can join.
        """
        if granted_ns <= 0 or not self.run_here:
            return None
        wait = wait or TierWait()
        erasures = self._memory.erasures
        until = asyncio.get_running_loop().time() + granted_ns / 1e9
        stale: TierHit | None = None
        for worker in self.workers:
            before = worker.excluded(key)
            with wait.limit(until) as limit:
                try:
                    async with limit:
                        entry = await worker.tier.get(key)
                except Exception as error:  # noqa: BLE001 - of a tier that is not to raise: a miss, counted
                    worker.read_timeouts += 1
                    if limit.expired():
                        break
                    self._failures.report(f"a read of the tier {worker.name}", error)
                    continue
            about = None if entry is None else (entry.subject, tuple(entry.tags))
            if self._memory.erased_since(key, about, erasures):
                worker.discarded += 1
                return None
            hit = worker.judge(key, entry, longest_ns, before, self._memory)
            if hit is not None and not hit.is_stale:
                self.promote(key, hit, erasures)
                return hit
            stale = stale or hit
        if stale is None or only_fresh or self._memory.erased_since(key, stale.about, erasures):
            return None
        return stale if self._memory.now() < stale.until_ns else None  # it may expire during slower reads

    def promote(self, key: Any, hit: TierHit, erasures: int) -> None:
        """Store a value from a tier in memory and on faster tiers, with its age.

        Args:
            key: of the entry.
            hit: a fresh value.
            erasures: ``erasures`` of the memory before the read; nothing is stored if the key was erased since.
        """
        memory = self._memory
        if memory.peek(key, _ABSENT) is not _ABSENT:
            return  # a value that was put while the tier was read is newer
        age_ns = memory.now() - hit.computed_ns
        if age_ns >= hit.fresh_ns:
            return
        left_ns = NEVER if hit.fresh_ns == NEVER else hit.fresh_ns - age_ns
        memory.put_aged(key, hit.value, left_ns, age_ns, hit.about, erasures)
        if memory.erased_since(key, hit.about, erasures):  # also true if the value was too large
            return
        self.write(key, hit.value, hit.fresh_ns, hit.about, age_ns=age_ns, before=hit.position)

    # -- writing ------------------------------------------------------------------------------------------------

    def write(
        self, key: str | bytes, value: Any, ttl_ns: int, about: About, *, age_ns: int = 0, before: int | None = None
    ) -> list[asyncio.Future[bool]]:
        """Queue a value to be written to the tiers that may store it; its key was not erased since its computation.

        Args:
            key: of the value.
            value: must not be changed afterwards.
            ttl_ns: how long it is fresh, from when it was computed; ``NEVER``: for good.
            about: subject and tags, to erase it by.
            age_ns: how long ago it was computed.
            before: write only to tiers before this position.

        Returns:
            Futures: whether each tier that may store it did.
        """
        if not self.run_here:
            return []
        subject, tags = about
        waiting: list[asyncio.Future[bool]] = []
        rule = None if self._policy is None else self._policy.rule(tags)
        for worker in self.workers[:before]:
            reason = self._disallowed_reason(worker, rule, subject)
            if reason:
                worker.disallowed += 1
                self._counts.count("disallowed", worker.name, "" if rule is None else rule.data_class, reason)
                if before is None:  # it is still newer than the tier's
                    worker.replace(key, deletes=True)
                    waiting.append(worker.put(key, None))
                continue
            retention_ns = ttl_ns if ttl_ns == NEVER else ttl_ns + self._memory.freshness.stale_ns
            if rule is not None and retention_ns != NEVER:  # stored longer, but not used after its own time
                retention_ns = max(retention_ns, in_ns(rule.min_age_s))
            entry = Entry(
                value=value,
                stored_ns=worker.stored_ns(key, age_ns),
                ttl_s=None if retention_ns == NEVER else retention_ns / 1e9,
                stale_s=0.0 if retention_ns == NEVER else (retention_ns - ttl_ns) / 1e9,
                tags=frozenset(tags),
                subject=subject,
                data_class="" if rule is None else rule.data_class,
                min_age_s=0.0 if rule is None else rule.min_age_s,
            )
            waiting.append(worker.put(key, entry))
        return waiting

    async def put_through(self, key: str | bytes, value: Any, ttl_s: float | None, about: About) -> bool:
        """Store a value in memory and on the tiers; see `EdgeCache.put_through`."""
        memory = self._memory
        if key in self._underway:  # not always: the table counts many deletions as one of all keys
            memory.overtake(key)
        erasures = memory.erasures
        stored = memory.put(key, value, ttl_s, about)
        if not stored:  # too large, which removed the old value
            erasures = memory.erasures
        for worker in self.workers:  # the old value must not be used, even if the write fails
            worker.replace(key)
        if memory.erased_since(key, about, erasures):  # by another thread
            await asyncio.gather(*(worker.put(key, None) for worker in self.workers if self.run_here))
            return False
        writes = self.write(key, value, memory.freshness.lasts_ns(ttl_s, about[1]), about)
        return self.run_here and all(await asyncio.gather(*writes)) and stored

    def _disallowed_reason(self, worker: TierWriter, rule: Rule | None, subject: str | None) -> str:
        """Return the reason why a tier may not store a value; ``""`` if it may."""
        if subject is None or worker.tier.encrypted:
            return "" if rule is None or rule.permits(worker.tier) else "the policy does not allow it there"
        if worker.name not in self._without_keys:
            self._without_keys.add(worker.name)
            _LOGGER.warning(
                "the tier %s gets no answers that have a subject, because it has no keys to destroy; give it "
                "keys=StoredKeys(path, master=…) of streaminfer.caching.tiers.encryption",
                worker.name,
            )
        return "it has a subject, and the tier has no keys"  # only destroying a key erases all copies

    # -- erasing ------------------------------------------------------------------------------------------------

    def delete(self, key: str | bytes, *, before: int | None = None) -> list[asyncio.Future[bool]]:
        """Queue the removal of a key from the tiers, or only from those before a position.

        Returns:
            Futures: whether each tier has removed it; empty if the tiers do not run on this event loop.
        """
        workers = self.workers[:before]
        for worker in workers:  # if a tier fails, its old value is not used
            worker.replace(key, deletes=True)
        return [worker.put(key, None, deletes=True) for worker in workers] if self.run_here else []

    def erase(self, subject: str | None, tag: str | None, *, before: int | None = None) -> PendingErasure:
        """Erase memory, and begin to erase the tiers.

        Args:
            subject: erase the entries of this subject; ``None``: erase by tag.
            tag: erase the entries with this tag; ``None``: erase by subject.
            before: erase only tiers before this position.

        Returns:
            The erasure that the tiers carry out.
        """
        workers = self.workers[:before]
        erasing = PendingErasure(subject, tag, [worker.name for worker in workers])
        for worker in workers:
            worker.erasures.add(erasing)
        erasing.arm(self._memory.erase(subject, tag))

        def begin() -> None:
            for worker in workers:
                worker.begin(erasing)

        with suppress(RuntimeError):  # the loop was closed before its tiers were stopped
            if self._home is not None and self._pid == os.getpid():
                self._home.call_soon_threadsafe(begin)
                return erasing
        begin()
        return erasing

    def _on_notice(self, position: int, notice: Notice) -> None:
        """Remove from memory and faster tiers what another process deleted or erased in the tier at ``position``.

        Computations in flight began before the notice, so their results are not stored.

        Raises:
            ErasureHeld: a legal hold or a minimum age forbids the erasure in this process; nothing was removed.
        """
        if notice.key is not None:
            self._memory.delete(notice.key, " in another process")
            self.delete(notice.key, before=position)
        else:
            self._memory.check_erasure(notice.subject, notice.tag)
            self.erase(notice.subject, notice.tag, before=position)

    async def legal_hold(self, subject: str | None, tag: str | None, *, on: bool) -> list[str]:
        """Begin or end a legal hold on each tier that can hold; return the names of the others.

        Raises:
            BackendError, Closed: a tier did not record the hold.
        """
        return [it.name for it in self.workers if not await it.tier.hold(subject=subject, tag=tag, on=on)]

    # -- inventory, statistics ----------------------------------------------------------------------------------

    async def inventory(self) -> list[Holding]:
        """Return each tier's entries by data class; without numbers if a tier cannot count them or does not run."""
        classes = () if self._policy is None else tuple(self._policy.classes)
        return [holding for worker in self.workers for holding in await worker.inventory(classes)]

    def count_removals(self) -> None:
        """Count the entries that the tiers purged and evicted, for the log."""
        for worker in self.workers:
            worker.count_removals()

    def restate_failures(self, log: RetentionLog) -> None:
        """Record failed erasures again if the log shows them as made by another cache's tier of the same name."""
        recorded = {(event.where, event.subject, event.tag) for event in log.pending}
        for worker in self.workers:
            for it in worker.erasures.pending:
                name = None if it.subject is None else log.pseudonym(it.subject)
                if it.armed and not it.is_untried(worker.name) and (worker.name, name, it.tag) not in recorded:
                    reason = "it is still to be made; another tier of this name made it"
                    self._counts.record("erase_failed", where=worker.name, count=0, reason=reason, **it.selection)

    def statistics(self) -> tuple[TierUsage, ...]:
        """Return a frozen snapshot for each tier."""
        return tuple(worker.statistics() for worker in self.workers)
