"""`EdgeCache`: its settings, the mapping that it is, and what it offers beyond one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, ItemsView, Iterable, Iterator, MutableMapping, ValuesView
from typing import TYPE_CHECKING, Any, NoReturn, Self, overload

from streaminfer._internal.validation import check_count, check_instance, check_secret, expected
from streaminfer.caching._locking import guarded_mapping
from streaminfer.caching.defensive_copy import freeze
from streaminfer.caching.freshness import Freshness, duration_ns, labels_of
from streaminfer.caching.memory import IS_ATOMIC, MAX_BYTES, CacheEvent, CacheStatistics, Memory
from streaminfer.caching.table._entries_cy import NO_LIMIT
from streaminfer.caching.table._mapping_cy import TableMapping
from streaminfer.caching.table.eviction import Eviction, policy_of
from streaminfer.caching.tiers.read_budget import LONGEST_READ_NS
from streaminfer.protocols import Clock, P, R, Service

if TYPE_CHECKING:
    from streaminfer.caching.erasure.erasure import Erasure
    from streaminfer.caching.erasure.memory_retention import MemoryRetention
    from streaminfer.caching.tiers.tier_set import TierSet
    from streaminfer.caching.wrapping.cached_calls import CachedFunction
    from streaminfer.compliance.retention import Retention
    from streaminfer.compliance.retention_log import RetentionLog
    from streaminfer.compliance.retention_report import RetentionReport

    _Mapping = TableMapping
else:
    _Mapping = TableMapping if IS_ATOMIC else guarded_mapping(TableMapping)

__all__ = ["EdgeCache"]

_MAX_ENTRIES = 2**30
_ABSENT: Any = object()


class EdgeCache(_Mapping, MutableMapping[Any, Any]):
    """Mapping whose entries expire, within limits of count and bytes; in front of services and functions: a cache.

    An entry is fresh until its time has passed: expired means now ≥ expiry. A time of a minute or more may be counted
    from the system's last tick, at most 10 ms earlier. The mapping's methods, ``len`` and ``size`` see fresh entries
    only. Iterating, ``keys()``, ``values()`` and ``items()`` go over a snapshot, the next to be evicted first, and
    count as no use; the latter two return one.

    Expired entries leave memory within 0.25 s after their time. One daemon thread frees those of all idle caches. A
    cache with a ``clock`` frees them when values are stored or counted, and by :meth:`expire`.

    Args:
        maxsize: entries it may hold, stale ones and failures included; ``None``: any number.
        max_bytes: bytes of their values, as ``weigher.payload_bytes`` counts them; ``None``: any number. The cache
            takes about 100 bytes per entry besides.
        ttl_s: seconds for which an entry is fresh; ``None``: for good, unless ``put`` or ``fresh_for`` says less.
        ttl_jitter: share of its time, 0 ≤ share < 1, by which a response is fresh for less at most, drawn for each, so
            that responses of one moment do not expire in one.
        stale_s: seconds for which an expired entry can still be used by a wrapped call; default of both windows.
        stale_while_revalidate_s: seconds for which it is the response at once, with a refresh behind it; ``None``:
            ``stale_s``.
        stale_if_error_s: seconds for which it is the response if computing another fails; ``None``: ``stale_s``.
        negative_ttl_s: seconds for which a failure of a wrapped call is remembered; 0: not at all.
        eviction: ``"lru"``: the least recently used first; ``"s3fifo"``: those that are used once first.
        retention: a `Retention` policy; ``ttl_s`` and ``negative_ttl_s`` are cut to it.
        tiers: slower caches, the fastest first: `DiskTier`, `RedisTier`. The mapping's methods do not use them. A
            `Stack` starts and stops them with its service, else ``async with cache:``.
        secret: at least 16 secret bytes for keyed hashes, if callers are not trusted: they can then not make two inputs
            with one key. The same for all processes that share a tier. ``None``: a faster hash.
        seed: of the draws for ``ttl_jitter``, ≥ 0; ``None``: from the operating system.
        clock: returns monotonic nanoseconds, ≥ 0; ``None``: the `Stack`'s clock, else the monotonic clock, read in C.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, or against the policy.

    Attributes:
        tiers: the tiers, with ``statistics()`` of each; ``None``: there are none.

    Thread-safe. Compiled, under the interpreter lock, operations take no lock; otherwise each takes one. Callers' code
    runs, and values are freed, only while the table is whole.

    The garbage collector does not walk cached objects: a cycle from a cached value back to its cache is freed when the
    entry goes.

    Example:
        >>> cache = EdgeCache(maxsize=2, ttl_s=60.0)
        >>> cache["a"], cache["b"], cache["c"] = 1, 2, 3
        >>> list(cache), cache.get("a"), cache.statistics().evicted
        (['b', 'c'], None, 1)
    """

    __slots__ = ("__weakref__", "_entered", "_flights", "_secret", "_settings", "tiers")

    _memory: Memory

    def __init__(
        self,
        *,
        maxsize: int | None = None,
        max_bytes: int | None = None,
        ttl_s: float | None = None,
        ttl_jitter: float = 0.0,
        stale_s: float = 0.0,
        stale_while_revalidate_s: float | None = None,
        stale_if_error_s: float | None = None,
        negative_ttl_s: float = 0.0,
        eviction: Eviction = "lru",
        retention: Retention | None = None,
        tiers: Iterable[Any] = (),
        secret: bytes | None = None,
        seed: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        freshness = Freshness(
            ttl_s=ttl_s,
            ttl_jitter=ttl_jitter,
            stale_s=stale_s,
            stale_while_revalidate_s=stale_while_revalidate_s,
            stale_if_error_s=stale_if_error_s,
            negative_ttl_s=negative_ttl_s,
            seed=seed,
            policy=retention,
        )
        self._secret = None if secret is None else check_secret("secret", secret)
        self._settings = (maxsize, max_bytes, eviction)
        self._flights: Any = None
        self._entered: list[object] = []  # an owner of the tiers for each `async with`
        memory = Memory(
            NO_LIMIT if maxsize is None else check_count("maxsize", maxsize, at_most=_MAX_ENTRIES),
            NO_LIMIT if max_bytes is None else check_count("max_bytes", max_bytes, at_most=MAX_BYTES),
            freshness,
            policy_of(eviction),
            clock,
        )
        super().__init__(memory, retention is not None)
        check_instance("tiers", tiers, lambda it: isinstance(it, Iterable), "several tiers, as in a tuple")
        several = tuple(tiers)
        self.tiers: TierSet | None = None
        if several:
            from streaminfer.caching.tiers.tier_set import TierSet  # noqa: PLC0415 - only with tiers

            self.tiers = TierSet(several, memory)

    @overload
    def wrap(self, inner: Service) -> Any: ...
    @overload
    def wrap(
        self, inner: Callable[P, R], *, subject: str | None = None, tags: Iterable[str] = ()
    ) -> CachedFunction[P, R]: ...
    def wrap(self, inner: Any, *, subject: str | None = None, tags: Iterable[str] = ()) -> Any:
        """Put the cache in front of a service or a function, sync or async; any number of them can share it.

        Responses are stored under the content of the request and the name of what was wrapped. Concurrent callers of
        one key share a computation. Responses of streams, degraded ones, and ``no_store`` ones are not stored.

        Args:
            inner: an object with ``call``, or a function whose arguments `content_key` takes.
            subject: of a function, the name of the parameter that says whose data a result is, to erase it by.
            tags: of a function, the names of the parameters whose values, strings or several, are its tags.

        Returns:
            The same kind. Its ``key_of`` gives the key of a request or call.

        Raises:
            TypeError: a backend, which takes whole batches: put the cache before the batcher. With tiers: a sync
                function, or something without a ``fingerprint`` that another process could find. Names of parameters
                for a service, whose requests have a subject and tags of their own.
            ValueError: names that are no parameters.
            MissingExtra: xxhash is not installed.
        """
        from streaminfer.caching.single_flight.flights import SingleFlight  # noqa: PLC0415
        from streaminfer.caching.wrapping.cached_service import wrap_inner  # noqa: PLC0415 - a mapping alone does not need it

        if self._flights is None:
            self._flights = SingleFlight(self._memory.now)
        return wrap_inner(self, inner, subject, tags)

    @property
    def flights(self) -> Any:
        """`FlightStatistics` of what was wrapped: how many computations were shared; ``None`` before anything was."""
        return None if self._flights is None else self._flights.statistics()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._memory.snapshot(False)[0])

    def values(self) -> ValuesView[Any]:
        """Return a snapshot of the fresh values, which counts as no use."""
        return self._snapshot().values()

    def items(self) -> ItemsView[Any, Any]:
        """Return a snapshot of the fresh keys and values, which counts as no use."""
        return self._snapshot().items()

    def _snapshot(self) -> dict[Any, Any]:
        return dict(zip(*self._memory.snapshot(True), strict=True))

    def pop(self, key: Any, default: Any = _ABSENT) -> Any:
        """Remove a fresh entry and return its value, else ``default`` if given, else raise `KeyError`; no use."""
        value = self._memory.take(key, _ABSENT)
        if value is not _ABSENT:
            return value
        if default is _ABSENT:
            raise KeyError(key)
        return default

    def put(
        self,
        key: Any,
        value: Any,
        *,
        ttl_s: float | None = None,
        size: int | None = None,
        tags: Iterable[str] = (),
        subject: str | None = None,
    ) -> bool:
        """Store a value.

        Args:
            key: hashable.
            value: anything.
            ttl_s: seconds for which it is fresh, ≥ 0; ``None``: the cache's. At most what the policy allows its class.
            size: its bytes, ≥ 0; ``None``: measured.
            tags: words to erase it by.
            subject: whose data it is, to erase it by.

        Returns:
            Whether it was stored. A value larger than the whole cache is not, and the one before it has gone.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range.
        """
        return self._memory.put(key, value, ttl_s, (subject, tags) if tags or subject is not None else None, size)

    def put_negative(
        self, key: Any, error: Any, *, ttl_s: float | None = None, tags: Iterable[str] = (), subject: str | None = None
    ) -> bool:
        """Remember a failure for wrapped calls, unless a fresh or stale value is there; return whether it was stored.

        Arguments as in :meth:`put`, but that ``ttl_s`` is the cache's ``negative_ttl_s`` if ``None``.
        """
        return self._memory.put_negative(key, error, ttl_s, (subject, tags))

    def expire(self) -> int:
        """Free every entry that is past its time, the stale time included; return how many went."""
        return self._memory.expire()

    def erase(self, *, subject: str | None = None, tag: str | None = None) -> int:
        """Remove every entry of a subject, or with a tag, from memory, and have the tiers remove theirs.

        The tiers carry it out after this returns, and the subject's keys are destroyed; :meth:`erase_everywhere` waits
        for them. A tier that fails is tried again until it succeeds; until then the cache uses nothing of that tier
        that belongs to the subject or has the tag. Callable in any thread. Takes time in proportion to what the cache
        holds: about 5 ms for a million entries.

        Args:
            subject: whose entries.
            tag: entries with which tag; give one of the two.

        Returns:
            Entries removed from memory: fresh, stale and failures.

        Raises:
            TypeError: neither or both, or no string.
            ErasureHeld: a legal hold, or a minimum age of the policy, forbids it; nothing was erased.
        """
        return self._memory.begin_erasure(self.tiers, subject, tag).in_memory

    async def erase_everywhere(self, *, subject: str | None = None, tag: str | None = None) -> Erasure:
        """Erase as :meth:`erase` does, and wait until each tier has been tried; on any event loop.

        Returns:
            Entries erased by place, and why a tier failed. Cancelling the caller does not end the erasure.
        """
        return await self._memory.begin_erasure(self.tiers, subject, tag).wait()

    def listen(self, listener: Callable[[CacheEvent], object]) -> Callable[[], None]:
        """Call ``listener`` with each :class:`CacheEvent` from now on; return a function that ends it.

        The operation that caused the event, or the thread that frees expired entries, calls it with no lock held. It
        can use the cache and should be quick. What it raises is logged (``streaminfer.caching``) and counted.
        """
        return self._memory.listen(listener)

    def statistics(self) -> CacheStatistics:
        """Return a frozen snapshot, which states its counting rules."""
        tiers = () if self.tiers is None else self.tiers.statistics()
        return self._memory.statistics(self.flights, tiers)

    @property
    def size(self) -> int:
        """Bytes of the fresh values."""
        return self._memory.counters()[1]

    @property
    def maxsize(self) -> int | None:
        """Most entries; ``None``: any number."""
        return self._settings[0]

    @property
    def max_bytes(self) -> int | None:
        """Most bytes of values; ``None``: any number."""
        return self._settings[1]

    @property
    def freshness(self) -> Freshness:
        """The settings of time: ``ttl_s``, ``stale_s``, ``negative_ttl_s``; ``policy``: a `Retention` or ``None``."""
        return self._memory.freshness

    # -- memory and tiers ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start the tiers, unless they run; what a `Stack` does with its service."""
        if self.tiers is not None:
            owner = object()
            await self.tiers.hold(owner)
            self._entered.append(owner)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.tiers is not None:
            await self.tiers.let_go(self._entered.pop(), drain=kind is None)

    async def fetch(self, key: str | bytes, default: Any = None, *, timeout_s: float = 1.0) -> Any:
        """Return the fresh value of a key: from memory, else from the fastest tier, and then into memory.

        Args:
            key: of the entry, a string or bytes.
            default: what is returned if there is none.
            timeout_s: seconds that the tiers may take together, > 0; more than 1 counts as 1.
        """
        _check_key(key)
        granted_ns = min(duration_ns("timeout_s", timeout_s, positive=True), LONGEST_READ_NS)
        value = self.get(key, _ABSENT)
        if value is not _ABSENT or self.tiers is None:
            return default if value is _ABSENT else value
        with self.tiers.underway(key):
            found = await self.tiers.read(key, granted_ns=granted_ns, only_fresh=True)
        return default if found is None else found.value

    async def put_through(
        self,
        key: str | bytes,
        value: Any,
        *,
        ttl_s: float | None = None,
        tags: Iterable[str] = (),
        subject: str | None = None,
    ) -> bool:
        """Store a value in memory and on each tier where the policy allows it.

        A copy of the value is stored, its arrays read-only. Tiers take what ``codec`` encodes. Arguments and errors are
        those of :meth:`put`; the key is a string or bytes.

        Returns:
            Whether memory and each of these tiers have it. This cache does not use what a tier that did not take it
            had before; other processes that read the tier may still see it.
        """
        _check_key(key)
        about: Any = labels_of(subject, tags) or (None, ())
        if self.tiers is None:
            return self._memory.put(key, freeze(value), ttl_s, about)
        return await self.tiers.put_through(key, freeze(value), ttl_s, about)

    async def delete(self, key: str | bytes) -> bool:
        """Remove what memory and the tiers have of a key: fresh, stale or a failure.

        What is being computed for the key is not stored, and later callers do not wait for it: they get a value that is
        computed from now on.

        Args:
            key: of the entry; of a wrapped service or function, what its ``key_of`` returns.

        Returns:
            Whether all of them are without it. This cache does not use what a tier that failed still has; other
            processes that read the tier may still see it.

        Raises:
            TypeError: the key is neither a string nor bytes.
        """
        _check_key(key)
        self._memory.delete(key)
        if self.tiers is None:
            return True
        deletions = self.tiers.delete(key)
        return self.tiers.run_here and all(await asyncio.gather(*deletions))

    # -- retention ----------------------------------------------------------------------------------------------

    async def hold(self, *, subject: str | None = None, data_class: str | None = None, reason: str) -> tuple[str, ...]:
        """Begin a legal hold: until it is released nothing of a subject, or of a class, is erased or purged.

        The log records it, so that it outlives the process. What leaves memory is preserved with the process
        (``preserved``), and what lies on a `DiskTier` with its file; neither is served beyond its time. The reason is
        one such as the number of a case, in words that name no person.

        Returns:
            The tiers that cannot hold: what lies there, as in Redis, goes at its time.

        Raises:
            TypeError, ValueError: not exactly one of both, or the policy has no such class or no `RetentionLog`.
            BackendError, Closed: the log or a tier did not learn of it; hold again.
        """
        return await self._governed().set_hold(self.tiers, subject, data_class, reason, on=True)

    async def release(self, *, subject: str | None = None, data_class: str | None = None, reason: str) -> None:
        """End a legal hold; what it preserved beyond its time goes. Arguments and errors as in :meth:`hold`."""
        await self._governed().set_hold(self.tiers, subject, data_class, reason, on=False)

    @property
    def preserved(self) -> tuple[CacheEvent, ...]:
        """What left memory and is preserved, not served: under legal hold, or below its minimum age."""
        retention = self._memory.retention
        return () if retention is None else retention.preserved

    async def retention_report(self) -> RetentionReport:
        """Return what the policy says, what memory and the tiers hold, and what was recorded of what went.

        Raises:
            TypeError: the cache has no policy.
            BackendError, ValueError: the log cannot be read, or was altered.
        """
        return await self._governed().report(self.tiers)

    def _governed(self) -> MemoryRetention:
        retention = self._memory.retention
        if retention is None:
            raise TypeError(expected("retention", "a cache with a policy: EdgeCache(retention=Retention(…))", None))
        return retention

    @property
    def erasure_log(self) -> RetentionLog | None:
        """The policy's `RetentionLog`, else one in memory, by the cache's clock; ``None``: nothing was erased."""
        return self._memory.erasure_log

    def bind_clock(self, clock: Clock) -> None:
        """Take over the clock of a `Stack`, unless one was given. Entries keep their instants."""
        self._memory.bind_clock(clock)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an EdgeCache cannot be copied or pickled")

    def __repr__(self) -> str:
        limits = {"maxsize": self.maxsize, "max_bytes": self.max_bytes}
        shown = "".join(f", {name}={value}" for name, value in limits.items() if value)
        return f"<EdgeCache({self._settings[2]}{shown})>"

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()


def _check_key(key: Any) -> None:
    check_instance("key", key, lambda it: isinstance(it, (str, bytes)), "a string or bytes, which tiers can name")
