"""A cache's tiers: asked where memory has no answer, written behind the caller's back, erased with it.

**Reading** happens inside single flight, once for all who ask. Tiers are asked in order, the fastest first. What is
found is *promoted*: kept in memory and written to the faster tiers, as old as it was, with its tags, subject and class.

**Time.** What the tiers may take together is decided by ``tier_lookup``: never more than a second; of the time that a
request has left, what the computation does not need, as far as is known from those before, and at most half. So a tier
that stalls makes no request late that could have been computed in time.

**Writing** is the business of one worker for each tier (``tier_worker``). What was computed is written with the time
for which it is fresh and stale, counted from the instant at which it was computed.

**PendingErasure.** Three rules together keep out what was there before:

* an erasure is registered with every tier, then memory is erased, which changes the cache's ``erasures``; then the
  tiers begin;
* nothing is stored, in memory or a tier, that was computed, or read from a tier, before its key was erased
  (``erased_since``);
* a tier's puts and erasures run one after another, and until an erasure is done nothing that it matches is read from
  that tier or put there; nor is the answer to a read that began before it used after it.

**Life.** Whoever uses the cache on an event loop holds its tiers: they start with the first and stop with the last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from streaminfer.caching.erasure.erasure import Erasure, PendingErasure, is_erased
from streaminfer.caching.erasure.invalidation import drop
from streaminfer.caching.erasure.retention_counts import RetentionCounts
from streaminfer.caching.table._timer_wheel_cy import NEVER
from streaminfer.caching.tiers.cache_table import CacheTable
from streaminfer.caching.tiers.leases import Leases, Leasing
from streaminfer.caching.tiers.notices import Announces
from streaminfer.caching.tiers.protocol import Entry, HoldingTier, Tier
from streaminfer.caching.tiers.tier_hit import TierHit
from streaminfer.caching.tiers.writer import PendingWrite, TierUsage, TierWriter
from streaminfer.compliance.retention import Holding, Rule

__all__ = ["TierSet"]

_LOGGER = logging.getLogger("streaminfer.caching")
_TELL_S = 5.0
_ERASE_WAIT_S = 60.0


class TierSet:
    """The tiers of one cache. ``erase`` and ``statistics`` are for any thread, all else for the loop that holds them.

    Args:
        tiers: the fastest first.
        memory: of the cache.
        ledger: of the policy's log, if there is one.

    Raises:
        TypeError: something that is no tier.
        ValueError: the policy wants encryption, and a tier does not encrypt.
    """

    def __init__(
        self,
        tiers: Sequence[Any],
        memory: CacheTable,
        ledger: RetentionCounts | None,
    ) -> None:
        policy = memory.freshness.policy
        self.workers: list[TierWriter] = []
        self.leasing: tuple[TierWriter, Leases] | None = None
        for position, tier in enumerate(tiers):
            if not isinstance(tier, Tier):
                raise TypeError(
                    f"tiers: expected tiers, such as DiskTier and RedisTier, got {tier!r} ({type(tier).__name__})"
                )
            same = sum(other.tier.name == tier.name for other in self.workers)
            name = tier.name if not same else f"{tier.name} {same + 1}"
            if policy is not None:
                policy.check_tier(name, tier)
            self.workers.append(TierWriter(tier, name, position, ledger))
            if self.leasing is None and isinstance(tier, Leasing) and tier.leases is not None:
                self.leasing = self.workers[-1], tier.leases
            if isinstance(tier, Announces):
                tier.hear(partial(drop, memory, self, position))
        self._stale_ns = memory.freshness.stale_ns
        self._policy = policy
        self._ledger = ledger
        self._memory = memory
        self.ttl_ns = memory.freshness.ttl_ns
        self._home: asyncio.AbstractEventLoop | None = None
        self._holders = self._entering = 0
        self._changing: asyncio.Lock | None = None
        self._teller: asyncio.TimerHandle | None = None
        self._warned = False
        self._without_keys: set[str] = set()
        self._latest: PendingErasure | None = None
        self._reads: dict[object, str | bytes] = {}  # whose key was not deleted since they began

    # -- life ---------------------------------------------------------------------------------------------------

    async def hold(self) -> None:
        """Starts the tiers, unless somebody holds them already.

        Raises:
            RuntimeError: they run on another event loop, or somebody else started one of them.
            BackendError: a tier cannot start; those before it are stopped again.
        """
        loop = asyncio.get_running_loop()
        if self._home is None:
            self._home, self._changing = loop, asyncio.Lock()
        elif self._home is not loop:
            lost = "were not stopped before their event loop was closed: make a new cache, with new tiers"
            raise RuntimeError(
                f"the tiers of this cache {lost if self._home.is_closed() else 'run on another event loop'}"
            )
        async with self._change():
            if self._holders == 0:
                await self._start()
            self._holders += 1

    async def let_go(self, *, drain: bool) -> None:
        """Stops the tiers, unless somebody else holds them.

        Args:
            drain: write what waits first.
        """
        async with self._change():
            self._holders -= 1
            if self._holders == 0:
                await self._stop(self.workers, drain=drain)

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """One starts or stops at a time; when the last has let go, another loop may begin."""
        assert self._changing is not None  # noqa: S101 - it is there as long as anybody holds them
        self._entering += 1
        try:
            async with self._changing:
                yield
        finally:
            self._entering -= 1
            if self._entering == self._holders == 0:
                self._home = self._changing = None

    async def _start(self) -> None:
        try:
            for worker in self.workers:
                try:
                    await worker.start()
                except RuntimeError as error:
                    hint = "a cache starts its tiers itself: start none yourself, and give none to two caches"
                    raise RuntimeError(f"tier {worker.name}: {error}; {hint}") from error
        except BaseException:
            await self._stop(self.workers, drain=False)  # those that did not start are left alone
            raise
        self._warned = False
        if self._ledger is not None:
            self._tell()

    async def _stop(self, workers: Sequence[TierWriter], *, drain: bool) -> None:
        if self._teller is not None:
            self._teller.cancel()
            self._teller = None
        # all at once: no tier waits for another's timeouts
        outcomes = await asyncio.gather(*(worker.stop(drain=drain) for worker in workers), return_exceptions=True)
        if self._ledger is not None:
            self._ledger.flush()
            if self._ledger.is_behind:
                await asyncio.to_thread(self._ledger.drain)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _tell(self) -> None:
        """Sees to it that the log of an idle cache is not behind for long."""
        assert self._ledger is not None  # noqa: S101 - or nobody calls this
        self.tell_what_went()
        self._ledger.flush()
        self._teller = asyncio.get_running_loop().call_later(_TELL_S, self._tell)

    @property
    def run_here(self) -> bool:
        """Whether they run on this event loop; says so, once, where they do not."""
        if self._holders and self._home is asyncio.get_running_loop():
            return True
        if not self._warned:
            self._warned = True
            _LOGGER.warning(
                "the tiers of a cache are not used: they do not run on this event loop; a Stack starts them, "
                "or `async with cache:`"
            )
        return False

    # -- reading ------------------------------------------------------------------------------------------------

    async def read(
        self, key: str | bytes, *, granted_ns: int, longest_ns: int = NEVER, only_fresh: bool = False
    ) -> TierHit | None:
        """What the tiers have.

        Args:
            key: whose answer.
            granted_ns: how long they may take together.
            longest_ns: how long an answer is fresh at most, from when it was computed.
            only_fresh: no stale answer.

        Returns:
            A fresh answer of the fastest tier that has one, else a stale one, else ``None``.
        """
        if granted_ns <= 0 or not self.run_here:
            return None
        read = object()
        self._reads[read] = key
        try:
            return await self._read(read, key, granted_ns, longest_ns, only_fresh)
        finally:
            self._reads.pop(read, None)

    async def _read(
        self, read: object, key: str | bytes, granted_ns: int, longest_ns: int, only_fresh: bool
    ) -> TierHit | None:
        until = asyncio.get_running_loop().time() + granted_ns / 1e9
        latest = self._latest
        stale: TierHit | None = None
        for worker in self.workers:
            limit = asyncio.timeout_at(until)
            pending = worker.pending  # it may be done before the answer comes, which is from before it all the same
            try:
                async with limit:
                    entry = await worker.tier.get(key)
            except Exception as error:
                worker.cut += 1
                if limit.expired():
                    break
                _LOGGER.warning("the tier %s failed on a read: %s", worker.name, error, exc_info=error)
                continue
            if self._latest is not latest or read not in self._reads:  # it may be what was erased or deleted
                worker.withheld += 1
                return None
            found = None if entry is None else self._judge(worker, key, entry, longest_ns, pending)
            if entry is None:
                worker.misses += 1
            elif found is None:
                continue
            elif not found.is_stale:
                worker.hits += 1
                return found
            else:
                worker.stale_hits += 1
                stale = stale or found
        if stale is None or only_fresh or self._latest is not latest or read not in self._reads:
            return None
        return (
            stale if self._memory.now() - stale.read_ns < stale.left_ns else None
        )  # slower tiers have taken their time

    def _judge(
        self, worker: TierWriter, key: str | bytes, entry: Entry, longest_ns: int, pending: tuple[PendingErasure, ...]
    ) -> TierHit | None:
        rule = None if self._policy is None else self._policy.rule(entry.tags)
        forbidden = rule is not None and not rule.permits(worker.tier)
        if forbidden or is_erased(entry, pending) or worker.is_replaced(key, entry):
            worker.withheld += 1
            return None
        age_ns = max(worker.tier.wall_clock() - entry.stored_ns, 0)
        stale_ns = min(_ns(entry.stale_s), self._stale_ns)
        fresh_ns = longest_ns
        if entry.ttl_s is not None:
            fresh_ns = min(fresh_ns, max(_ns(entry.ttl_s) - _ns(entry.stale_s), 0))
        if rule is not None:
            fresh_ns = min(fresh_ns, _ns(rule.max_age_s) - self._stale_ns)
        if fresh_ns != NEVER and age_ns >= fresh_ns + stale_ns:
            worker.misses += 1
            return None
        past_ns = age_ns - fresh_ns
        left_ns = NEVER if fresh_ns == NEVER else (stale_ns if past_ns >= 0 else 0) - past_ns
        return TierHit(entry, worker.name, worker.position, past_ns, left_ns, age_ns, self._memory.now())

    # -- writing ------------------------------------------------------------------------------------------------

    def write(
        self,
        key: str | bytes,
        value: Any,
        *,
        ttl_ns: int,
        computed_ns: int,
        erasures: int,
        tags: Iterable[str] = (),
        subject: str | None = None,
        before: int | None = None,
        wait: bool = False,
    ) -> list[asyncio.Future[bool]]:
        """Has an answer written to the tiers that may have it.

        Args:
            key: whose answer.
            value: the answer, which nobody changes.
            ttl_ns: how long it is fresh, from when it was computed; ``NEVER``: for good.
            computed_ns: when that was, on the cache's clock.
            erasures: the cache's count before that; if the key was erased since, nothing is written.
            tags: to erase it by.
            subject: the same.
            before: only to tiers before this position.
            wait: whether anyone waits for it.

        Returns:
            For who waits, whether each tier that may have it took it.
        """
        waiting: list[asyncio.Future[bool]] = []
        age_ns = max(self._memory.now() - computed_ns, 0)
        if wait:  # what is there already is not the value of this key, whatever comes of the write
            for worker in self.workers:
                worker.replace(key, max(worker.tier.wall_clock() - age_ns, 0))
        if self._memory.erased_since(key, erasures) or not self.run_here:
            return [_settled(False)] if wait else []
        rule = None if self._policy is None else self._policy.rule(tags)
        for worker in self.workers[:before]:
            if subject is not None and not worker.tier.encrypted:  # only destroying a key erases all copies of it
                worker.forbidden += 1
                self._refused(worker, rule, "it has a subject, and the tier has no keys")
                self._warn_of_keys(worker)
                continue
            if rule is not None and not rule.permits(worker.tier):
                worker.forbidden += 1
                self._refused(worker, rule, "the policy does not allow it there")
                continue
            kept_ns = ttl_ns if ttl_ns == NEVER else ttl_ns + self._stale_ns
            if rule is not None and kept_ns != NEVER:  # beyond its own time it is not served
                kept_ns = max(kept_ns, _ns(rule.min_age_s))
            entry = Entry(
                value=value,
                stored_ns=max(worker.tier.wall_clock() - age_ns, 0),
                ttl_s=None if kept_ns == NEVER else kept_ns / 1e9,
                stale_s=0.0 if kept_ns == NEVER else (kept_ns - ttl_ns) / 1e9,
                tags=frozenset(tags),
                subject=subject,
                data_class="" if rule is None else rule.data_class,
            )
            write = PendingWrite(key, entry)
            if wait:
                write.done = asyncio.get_running_loop().create_future()
                waiting.append(write.done)
            worker.put(write)
        return waiting

    def _refused(self, worker: TierWriter, rule: Rule | None, why: str) -> None:
        if self._ledger is not None:
            self._ledger.count("refused", worker.name, "" if rule is None else rule.data_class, why)

    def _warn_of_keys(self, worker: TierWriter) -> None:
        if worker.name not in self._without_keys:
            self._without_keys.add(worker.name)
            _LOGGER.warning(
                "the tier %s gets no answers that have a subject, because it has no keys to destroy; give it "
                "keys=StoredKeys(path, master=…) of streaminfer.caching.tiers.encryption",
                worker.name,
            )

    # -- erasing ------------------------------------------------------------------------------------------------

    def begin_delete(self, key: str | bytes, *, before: int | None = None) -> list[asyncio.Future[bool]]:
        """Has what the tiers have of one key removed.

        Args:
            key: whose.
            before: only from tiers before this position.

        Returns:
            Whether each of them is without it.
        """
        for read in [read for read, of in self._reads.items() if of == key]:
            del self._reads[read]
        workers = self.workers[:before]
        for worker in workers:  # what one that fails still has is not used
            worker.replace(key, worker.tier.wall_clock() + 1)
        if not self.run_here:
            return [_settled(False)]
        return [worker.delete(key) for worker in workers]

    def erase(
        self, subject: str | None, tag: str | None, in_memory: Callable[[], int], *, before: int | None = None
    ) -> Erasure:
        """Erases memory and the tiers.

        Args:
            subject: whose entries; or
            tag: with which tag.
            in_memory: erases memory, and changes the count of erasures before it looks.
            before: only tiers before this position.

        Returns:
            The count in memory, to be awaited for the rest. In a thread without an event loop: the whole, if that of
            the tiers runs.
        """
        workers = self.workers[:before]
        self._latest = erasing = PendingErasure(subject, tag, [worker.name for worker in workers])
        for worker in workers:
            worker.register(erasing)
        erasing.arm(in_memory())
        home = self._home
        try:
            here: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if home is not None and home is not here:
            try:
                home.call_soon_threadsafe(self._begin, erasing, workers)
            except RuntimeError:  # closed, without having stopped its tiers
                self._begin(erasing, workers)
            if here is None and home.is_running():
                try:
                    return erasing.outcome.result(_ERASE_WAIT_S)
                except FutureTimeout:
                    return erasing.so_far()
        else:
            self._begin(erasing, workers)
        return erasing.so_far()

    def _begin(self, erasing: PendingErasure, workers: Sequence[TierWriter]) -> None:
        for worker in workers:
            if not worker.runs and erasing.subject is not None and worker.tier.keys is not None:
                try:  # what cannot be reached can be made unreadable; the tier does it again when it starts
                    worker.tier.keys.destroy(erasing.subject)
                except Exception as error:
                    _LOGGER.warning("the keys of a subject could not be destroyed yet: %s", error, exc_info=error)
            worker.begin(erasing)

    async def legal_hold(self, subject: str | None, tag: str | None, *, on: bool) -> list[str]:
        """Begins or ends a legal hold on each tier that can hold; the names of the others.

        Raises:
            BackendError, Closed: a tier did not learn of it.
        """
        for worker in self.workers:
            if isinstance(worker.tier, HoldingTier):
                await worker.tier.hold(subject=subject, tag=tag, on=on)
        return [worker.name for worker in self.workers if not isinstance(worker.tier, HoldingTier)]

    # -- what there is ------------------------------------------------------------------------------------------

    async def inventory(self) -> list[Holding]:
        """What each tier holds, by data class; where one cannot say, or does not run, a holding without numbers."""
        classes = () if self._policy is None else tuple(self._policy.classes)
        here = self._home is asyncio.get_running_loop()
        return [held for worker in self.workers for held in await worker.inventory(classes, here=here)]

    def purge_bounds_s(self) -> dict[str, float]:
        """How long each tier may hold what has expired, seconds; one that says nothing is not there."""
        return {
            worker.name: worker.tier.purge_bound_s for worker in self.workers if worker.tier.purge_bound_s is not None
        }

    def tell_what_went(self) -> None:
        """Counts, for the log, what the tiers have purged and evicted."""
        for worker in self.workers:
            worker.tell_what_went()

    def statistics(self) -> tuple[TierUsage, ...]:
        """A frozen snapshot for each tier."""
        return tuple(worker.statistics() for worker in self.workers)


def _settled(result: bool) -> asyncio.Future[bool]:
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_result(result)
    return future


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
