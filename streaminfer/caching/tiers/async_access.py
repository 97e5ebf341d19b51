"""What an `EdgeCache` offers beside its mapping: coroutines over memory and tiers, and a report on its policy."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Self, cast

from streaminfer._internal.validation import check_duration, expected
from streaminfer.caching.arguments import labels_of
from streaminfer.caching.table._timer_wheel_cy import NEVER

if TYPE_CHECKING:
    from streaminfer.caching.edge_cache import EdgeCache
    from streaminfer.caching.table.events import CacheEvent
    from streaminfer.caching.tiers.lookup import TierHit
    from streaminfer.caching.tiers.tier_set import TierSet
    from streaminfer.compliance.retention import Action, Holding
    from streaminfer.compliance.retention_log import RetentionLog
    from streaminfer.compliance.retention_report import RetentionReport

__all__ = ["TieredMapping"]

_NOTHING: Any = object()
_LONGEST_READ_S = 1.0
_SWEPT_S = 0.25


class TieredMapping:
    """A part of `EdgeCache`."""

    __slots__ = ()

    if TYPE_CHECKING:
        tiers: TierSet | None

    async def __aenter__(self) -> Self:
        """Starts the tiers, unless somebody has; what a `Stack` does with its service."""
        if self.tiers is not None:
            await self.tiers.hold()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.tiers is not None:
            await self.tiers.let_go(drain=kind is None)

    async def fetch(self, key: str | bytes, default: Any = None, *, timeout_s: float = _LONGEST_READ_S) -> Any:
        """The fresh value of a key: from memory, else from the fastest tier that has one, which memory then has too.

        Args:
            key: whose value.
            default: what is returned where there is none.
            timeout_s: how long the tiers may take together, seconds > 0, at most 1.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range.
        """
        _check_key(key)
        seconds = min(check_duration("timeout_s", timeout_s, positive=True), _LONGEST_READ_S)
        cache = cast("EdgeCache", self)
        value = cache.get(key, _NOTHING)
        if value is not _NOTHING:
            return value
        if self.tiers is None:
            return default
        erasures = cache.erasures
        found = await self.tiers.read(key, granted_ns=round(seconds * 1e9), only_fresh=True)
        if found is None:
            return default
        self.promote(key, found, erasures)
        return found.value

    async def put_through(
        self,
        key: str | bytes,
        value: Any,
        *,
        ttl_s: float | None = None,
        tags: Iterable[str] = (),
        subject: str | None = None,
    ) -> bool:
        """Keeps a value in memory and, written when this returns, on each tier where the policy allows it.

        Args:
            key: whose value.
            value: of which a copy is kept, its arrays read-only. Tiers take what ``serialise`` takes.
            ttl_s: how long it is fresh, seconds ≥ 0; ``None``: the cache's.
            tags: words to erase it by.
            subject: whose data it is.

        Returns:
            Whether memory and each of these tiers have it. What a tier that did not take it had before is used no
            more by this cache; other processes that read the tier may still see it.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range.
        """
        from streaminfer.caching.wrapping.defensive_copy import keep  # noqa: PLC0415 - a mapping alone does not need it

        _check_key(key)
        cache = cast("EdgeCache", self)
        own, words, before = keep(value), tuple(tags), cache.erasures
        kept = cache.put(key, own, ttl_s=ttl_s, tags=words, subject=subject)
        if self.tiers is None:
            return kept
        writes = self.tiers.write(
            key,
            own,
            ttl_ns=cache.lasts_ns(ttl_s, words),
            computed_ns=cache.now(),
            erasures=before if kept else cache.erasures,  # what is too large takes the value before it along
            tags=words,
            subject=subject,
            wait=True,
        )
        import asyncio  # noqa: PLC0415 - a mapping alone does not need it

        stored = await asyncio.gather(*writes)
        return kept and all(stored)

    async def delete(self, key: str | bytes) -> bool:
        """Removes what memory and the tiers have of a key: fresh, stale or a failure.

        What is computed at present was begun before and is not stored.

        Args:
            key: whose value; of a wrapped service or function, what its ``key_of`` returns.

        Returns:
            Whether all of them are without it. What a tier that failed still has is used no more by this cache; other
            processes that read the tier may still see it.

        Raises:
            TypeError: the key is neither a string nor bytes.
        """
        _check_key(key)
        from streaminfer.caching.erasure.retention_counts import DELETED  # noqa: PLC0415 - a mapping alone does not need it

        cache = cast("EdgeCache", self)
        if cache.discard(key) and cache._ledger is not None:
            cache._ledger.count("removed", "memory", "", DELETED)
        if self.tiers is None:
            return True
        import asyncio  # noqa: PLC0415 - a mapping alone does not need it

        return all(await asyncio.gather(*self.tiers.begin_delete(key)))

    def promote(self, key: Any, found: TierHit, erasures: int) -> None:
        """Keeps in memory and on faster tiers what a tier had, as old as it is; for who has read it.

        Args:
            key: whose.
            found: a fresh answer.
            erasures: the cache's count before it was read; nothing is kept if the key was erased since.
        """
        cache = cast("EdgeCache", self)
        if cache.erased_since(key, erasures) or self.tiers is None or cache.peek(key, _NOTHING) is not _NOTHING:
            return  # what was put while a tier was asked is newer
        waited_ns = max(cache.now() - found.read_ns, 0)
        left_ns = found.left_ns if found.left_ns == NEVER else found.left_ns - waited_ns
        if left_ns <= 0:
            return
        labels = labels_of(found.subject, found.tags)
        if cache._policy is not None:
            _, labels = cache._governed(0, labels, found.age_ns + waited_ns)
        cache.store(key, found.value, left_ns, -1, labels)
        if cache.erased_since(key, erasures):  # by another thread, since then, or by a value that was too large
            cache.pop(key, None)
            return
        self.tiers.write(
            key,
            found.value,
            ttl_ns=NEVER if left_ns == NEVER else found.age_ns + found.left_ns,
            computed_ns=found.read_ns - found.age_ns,
            erasures=erasures,
            tags=found.tags,
            subject=found.subject,
            before=found.position,
        )

    async def hold(self, *, subject: str | None = None, data_class: str | None = None, reason: str) -> tuple[str, ...]:
        """Begin a legal hold: until it is released nothing of a subject, or of a class, is erased or purged.

        It is recorded in the log, and outlives the process with it. What leaves memory is preserved with the process
        (``preserved``) and what lies on a `DiskTier`, while the file lasts; neither is served beyond its time.

        Args:
            subject: whose data; or
            data_class: of which class of the policy.
            reason: such as the number of a case, in words that name no person.

        Returns:
            The tiers that cannot hold: what lies there, as in Redis, goes at its time.

        Raises:
            TypeError, ValueError: not exactly one of both, or the policy has no such class or no `RetentionLog`.
            BackendError, Closed: the log or a tier did not learn of it; hold again.
        """
        return await self._change_hold("held", subject, data_class, reason)

    async def release(self, *, subject: str | None = None, data_class: str | None = None, reason: str) -> None:
        """End a legal hold; what it preserved beyond its time goes. Arguments and errors as in :meth:`hold`."""
        await self._change_hold("released", subject, data_class, reason)
        cache = cast("EdgeCache", self)
        cache.sweep(cache.now(), 0)

    @property
    def preserved(self) -> tuple[CacheEvent, ...]:
        """What left memory and is preserved, not served: under legal hold, or below its minimum age."""
        custody = cast("EdgeCache", self)._custody
        return () if custody is None else custody.entries

    async def _change_hold(
        self, action: Action, subject: str | None, data_class: str | None, reason: str
    ) -> tuple[str, ...]:
        import asyncio  # noqa: PLC0415 - a mapping alone does not need it

        cache = cast("EdgeCache", self)
        policy, custody = cache._policy, cache._custody
        if (subject is None) == (data_class is None):
            raise TypeError(
                "hold: expected a subject or a data_class, got " + ("neither" if subject is None else "both")
            )
        if policy is None or custody is None or custody.log is None:
            raise TypeError(expected("retention", "a policy with a RetentionLog, which records the hold", policy))
        if data_class is not None and data_class not in policy.classes:
            raise ValueError(expected("data_class", f"one of the policy's, {sorted(policy.classes)}", data_class))
        if cache._ledger is not None and cache._ledger.is_behind:  # what was refused before this is recorded before it
            await asyncio.to_thread(cache._ledger.drain)
        record = partial(custody.log.record, action, where="all", count=0, reason=reason, subject=subject)
        await asyncio.to_thread(record, data_class=data_class or "")
        if self.tiers is None:
            return ()
        return tuple(await self.tiers.legal_hold(subject, data_class, on=action == "held"))

    async def retention_report(self) -> RetentionReport:
        """What the policy says, what memory and the tiers hold now, and what was recorded of what went.

        Raises:
            TypeError: the cache has no policy.
            BackendError, ValueError: the log cannot be read, or was altered.
        """
        from streaminfer.compliance.retention_report import build_report  # noqa: PLC0415 - who reports loads it

        cache = cast("EdgeCache", self)
        policy = cache._policy
        if policy is None:
            raise TypeError(expected("retention", "a cache with a policy: EdgeCache(retention=Retention(…))", None))
        holdings = self._in_memory()
        bounds = {"memory": _SWEPT_S}
        if self.tiers is not None:
            self.tiers.tell_what_went()
            holdings += await self.tiers.inventory()
            bounds |= self.tiers.purge_bounds_s()
        if cache._ledger is not None:
            cache._ledger.flush()
            if cache._ledger.is_behind:
                import asyncio  # noqa: PLC0415 - a mapping alone does not need it

                await asyncio.to_thread(cache._ledger.drain)
        log: Any = policy.log
        events = () if log is None else log if hasattr(log, "verify") else log.events
        return build_report(policy, holdings, events, purge_bounds_s=bounds)

    @property
    def erasure_log(self) -> RetentionLog | None:
        """Where erasures are recorded: the policy's `RetentionLog`, else one in memory; ``None``: none were made."""
        cache = cast("EdgeCache", self)
        log: Any = None if cache._policy is None else cache._policy.log
        if log is not None:
            from streaminfer.compliance.retention_log import RetentionLog  # noqa: PLC0415 - who has one has loaded it

            if isinstance(log, RetentionLog):
                return log
        return cache._own_log

    def _remember_erasure(self, subject: str | None, tag: str | None, count: int) -> None:
        """Records an erasure of memory for proofs, where no `RetentionLog` of a policy does."""
        cache = cast("EdgeCache", self)
        if self.erasure_log is cache._own_log:
            from streaminfer.compliance.retention_log import RetentionLog  # noqa: PLC0415 - not every cache is erased

            cache._own_log = cache._own_log or RetentionLog(wall_clock=cache.now)
            asked: Any = {"where": "memory", "data_class": "", "count": count, "reason": "asked for"}
            cache._own_log.record("erased", **asked, subject=subject, tag=tag)

    def _in_memory(self) -> list[Holding]:
        """By class: how many there are, stale ones and failures included, and the oldest; bytes where there is one."""
        from streaminfer.compliance.retention import Holding  # noqa: PLC0415 - the same

        cache = cast("EdgeCache", self)
        labels = cache.snapshot(3)[::2]
        numbers: dict[str, int] = {}
        oldest: dict[str, int | None] = {}
        for label in labels:
            data_class, stored_ns = ("", None) if label is None else label[2:]
            before = oldest.get(data_class, NEVER)
            numbers[data_class] = numbers.get(data_class, 0) + 1
            oldest[data_class] = None if before is None or stored_ns is None else min(before, stored_ns)
        now_ns = cache.now()
        size = cache.statistics().held_bytes if len(numbers) == 1 else None
        holdings = []
        for data_class, number in numbers.items():
            stored_ns = oldest[data_class]
            age_s = None if stored_ns is None else max(now_ns - stored_ns, 0) / 1e9
            holdings.append(Holding("memory", data_class, number, age_s, size))
        for event in cache.preserved:
            held: Any = event.labels
            holdings.append(Holding("preserved", held[2], 1, max(now_ns - held[3], 0) / 1e9, None))
        return holdings or [Holding("memory", "", 0, None, 0)]


def _check_key(key: Any) -> None:
    if not isinstance(key, (str, bytes)):
        raise TypeError(expected("key", "a string or bytes, which tiers can name", key))
