"""The cache, `EdgeCache`: a mapping with expiry, which also wraps services and functions and erases by subject."""

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
    """Mapping with expiring entries and limits on count and bytes, which also caches services and functions.

    An entry is fresh before its expiry instant and expired from that instant on (now ≥ expiry). Times of a minute or
    more may end early, by at most 10 ms, because the cache counts them from the system's last clock tick. The mapping's
    methods, ``len`` and ``size`` see fresh entries only. Iteration, ``keys()``, ``values()`` and ``items()`` read a
    snapshot and do not count as a use. Only with ``eviction="lru"`` is the next entry to be evicted first.

    Expired entries leave memory within 0.25 s after their time (stale time included). One daemon thread frees those of
    all idle caches. A cache with a ``clock`` frees them when values are stored or counted, and in :meth:`expire`.

    Args:
        maxsize: most entries, stale ones and failures included; ``None``: no limit.
        max_bytes: most bytes of values, as ``weigher.payload_bytes`` counts them; ``None``: no limit. Each entry takes
            about 100 bytes more.
        ttl_s: seconds for which an entry is fresh; ``None``: for good, unless ``put`` or ``fresh_for`` sets a time.
        ttl_jitter: largest share of its time by which a response expires earlier, 0 ≤ share < 1. The cache draws a
            share for each response, so that responses stored together do not expire together.
        stale_s: seconds for which wrapped calls can still use an expired entry; the default of the next two.
        stale_while_revalidate_s: seconds for which a wrapped call returns the stale value at once and refreshes it in
            the background; ``None``: ``stale_s``.
        stale_if_error_s: seconds for which a wrapped call returns the stale value if computing a new one fails;
            ``None``: ``stale_s``.
        negative_ttl_s: seconds for which a failure of a wrapped call is remembered; 0: failures are not remembered.
        eviction: ``"lru"`` evicts the least recently used entry first; ``"s3fifo"`` evicts entries used once first.
        retention: a `Retention` policy, which limits ``ttl_s`` and ``negative_ttl_s``.
        tiers: slower caches, the fastest first: `DiskTier`, `RedisTier`. The mapping's methods do not use them. A
            `Stack` starts and stops them with its service; elsewhere use ``async with cache:``.
        secret: at least 16 secret bytes for keyed hashes, so that untrusted callers cannot make two inputs with the
            same key. All processes that share a tier need the same secret. ``None``: a faster hash without a key.
        seed: seed of the ``ttl_jitter`` draws, ≥ 0; ``None``: draws of the operating system.
        clock: returns monotonic nanoseconds, ≥ 0; ``None``: the `Stack`'s clock, else the monotonic clock, read in C.

    Raises:
        TypeError, ValueError: an argument has the wrong type, is out of range or contradicts the policy.

    Attributes:
        tiers: the tiers, with ``statistics()`` of each; ``None`` without tiers.

    Thread-safe. Under the interpreter lock, compiled operations take no other lock; otherwise each takes one. The
    cache calls callers' code and frees values only while its table is consistent.

    The garbage collector does not walk cached objects: a cycle from a cached value back to its cache is freed only
    when the entry leaves the cache.

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
        self._entered: list[object] = []  # one owner of the tiers per `async with`
        memory = Memory(
            NO_LIMIT if maxsize is None else check_count("maxsize", maxsize, at_most=_MAX_ENTRIES),
            NO_LIMIT if max_bytes is None else check_count("max_bytes", max_bytes, at_most=MAX_BYTES),
            freshness,
            policy_of(eviction),
            clock,
        )
        super().__init__(memory, retention is not None)
        check_instance("tiers", tiers, Iterable, "several tiers, as in a tuple")
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
        """Wrap a service or a function, sync or async, in the cache; several wrapped objects can share one cache.

        The key of a response is the content of its request and the name of the wrapped object. Concurrent callers of
        one key share a computation. Streamed, degraded and ``no_store`` responses are not stored.

        Args:
            inner: an object with ``call``, or a function whose arguments `content_key` accepts.
            subject: for a function, the name of the parameter that identifies the data subject; for erasure.
            tags: for a function, the names of the parameters whose values (a string or several) become its tags.

        Returns:
            A wrapper of the same kind. Its ``key_of`` returns the key of a request or call.

        Raises:
            TypeError: ``inner`` is a backend, which takes whole batches: put the cache before the batcher. With tiers:
                ``inner`` is a sync function, or has no ``fingerprint`` that another process can find. ``subject`` or
                ``tags`` is given for a service, whose requests carry their own.
            ValueError: the function has no parameter of that name.
            MissingExtra: xxhash is not installed.
        """
        from streaminfer.caching.single_flight.flights import SingleFlight  # noqa: PLC0415
        from streaminfer.caching.wrapping.cached_service import wrap_inner  # noqa: PLC0415 - a mapping alone does not need it

        if self._flights is None:
            self._flights = SingleFlight(self._memory.now)
        return wrap_inner(self, inner, subject, tags)

    @property
    def flights(self) -> Any:
        """`FlightStatistics`: how many computations wrapped calls shared; ``None`` before the first :meth:`wrap`."""
        return None if self._flights is None else self._flights.statistics()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._memory.snapshot(False)[0])

    def values(self) -> ValuesView[Any]:
        """Return the fresh values of one moment; does not count as a use."""
        return self._snapshot().values()

    def items(self) -> ItemsView[Any, Any]:
        """Return the fresh keys and values of one moment; does not count as a use."""
        return self._snapshot().items()

    def _snapshot(self) -> dict[Any, Any]:
        return dict(zip(*self._memory.snapshot(True), strict=True))

    def pop(self, key: Any, default: Any = _ABSENT) -> Any:
        """Remove a fresh entry and return its value, else ``default`` or raise `KeyError`; does not count as a use."""
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
            ttl_s: seconds for which it is fresh, ≥ 0; ``None``: the cache's. A retention policy can shorten it.
            size: its bytes, ≥ 0; ``None``: measured.
            tags: words to erase it by.
            subject: the person whose data it is, to erase it by.

        Returns:
            Whether it was stored. A value larger than the whole cache is not stored; the key's old entry is removed.

        Raises:
            TypeError, ValueError: an argument has the wrong type or is out of range.
        """
        return self._memory.put(key, value, ttl_s, (subject, tags) if tags or subject is not None else None, size)

    def put_negative(
        self, key: Any, error: Any, *, ttl_s: float | None = None, tags: Iterable[str] = (), subject: str | None = None
    ) -> bool:
        """Remember a failure for wrapped calls, unless a fresh or stale value is there; return whether it was stored.

        The arguments are those of :meth:`put`; ``ttl_s=None`` means the cache's ``negative_ttl_s``.
        """
        return self._memory.put_negative(key, error, ttl_s, (subject, tags))

    def expire(self) -> int:
        """Free every entry whose time, stale time included, has passed; return how many were freed."""
        return self._memory.expire()

    def erase(self, *, subject: str | None = None, tag: str | None = None) -> int:
        """Remove every entry of a subject, or with a tag, from memory, and have the tiers remove theirs.

        The tiers erase, and the subject's keys are destroyed, after this returns; :meth:`erase_everywhere` waits for
        them. The cache retries a tier that fails until it succeeds; until then the cache uses none of that tier's
        entries that belong to the subject or have the tag. Callable in any thread. Takes time in proportion to the
        number of entries: about 5 ms for a million.

        Args:
            subject: erase the entries of this subject.
            tag: erase the entries with this tag; give exactly one of the two.

        Returns:
            Entries removed from memory: fresh, stale and failures.

        Raises:
            TypeError: neither or both are given, or not a string.
            ErasureHeld: a legal hold or a minimum age of the policy forbids it; nothing was erased.
        """
        return self._memory.begin_erasure(self.tiers, subject, tag).in_memory

    async def erase_everywhere(self, *, subject: str | None = None, tag: str | None = None) -> Erasure:
        """Erase as :meth:`erase` does, and wait until the cache has tried each tier; works on any event loop.

        Returns:
            Entries erased by place, and why a tier failed. If the caller is cancelled, the erasure continues.
        """
        return await self._memory.begin_erasure(self.tiers, subject, tag).wait()

    def listen(self, listener: Callable[[CacheEvent], object]) -> Callable[[], None]:
        """Call ``listener`` with each later :class:`CacheEvent`; return a function that removes it.

        The operation that caused the event, or the thread that frees expired entries, calls it without holding a lock.
        It can use the cache and should be quick. Its exceptions are logged (``streaminfer.caching``) and counted.
        """
        return self._memory.listen(listener)

    def statistics(self) -> CacheStatistics:
        """Return a frozen snapshot; `CacheStatistics` states the counting rules."""
        tiers = () if self.tiers is None else self.tiers.statistics()
        return self._memory.statistics(self.flights, tiers)

    @property
    def size(self) -> int:
        """Bytes of the fresh values."""
        return self._memory.counters()[1]

    @property
    def maxsize(self) -> int | None:
        """Most entries; ``None``: no limit."""
        return self._settings[0]

    @property
    def max_bytes(self) -> int | None:
        """Most bytes of values; ``None``: no limit."""
        return self._settings[1]

    @property
    def freshness(self) -> Freshness:
        """Time settings: ``ttl_s``, ``stale_s``, ``negative_ttl_s``; ``policy``: a `Retention` or ``None``."""
        return self._memory.freshness

    # -- memory and tiers ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start the tiers, unless they run; a `Stack` does so for its service."""
        if self.tiers is not None:
            owner = object()
            await self.tiers.hold(owner)
            self._entered.append(owner)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.tiers is not None:
            await self.tiers.release(self._entered.pop(), drain=kind is None)

    async def fetch(self, key: str | bytes, default: Any = None, *, timeout_s: float = 1.0) -> Any:
        """Return the fresh value of a key from memory, else from the fastest tier that has it; then store it in memory.

        Args:
            key: of the entry, a string or bytes.
            default: returned if there is no fresh value.
            timeout_s: seconds that the tiers may take together, > 0; values above 1 count as 1.
        """
        _check_key(key)
        granted_ns = min(duration_ns("timeout_s", timeout_s, positive=True), LONGEST_READ_NS)
        value = self.get(key, _ABSENT)
        if value is not _ABSENT or self.tiers is None:
            return default if value is _ABSENT else value
        with self.tiers.underway(key):
            hit = await self.tiers.read(key, granted_ns=granted_ns, only_fresh=True)
        return default if hit is None else hit.value

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

        The cache stores a copy, with read-only arrays. Tiers store values that ``codec`` can encode. Arguments and
        errors are those of :meth:`put`; the key is a string or bytes.

        Returns:
            Whether memory and each of these tiers stored it, and the others removed an older value. This cache ignores
            one on a tier that did not; other processes that read the tier may still see it.
        """
        _check_key(key)
        about: Any = labels_of(subject, tags) or (None, ())
        if self.tiers is None:
            return self._memory.put(key, freeze(value), ttl_s, about)
        return await self.tiers.put_through(key, freeze(value), ttl_s, about)

    async def delete(self, key: str | bytes) -> bool:
        """Remove a key's entry from memory and the tiers: fresh, stale or a failure.

        The result of a computation in flight for the key is not stored. Later callers do not wait for it.

        Args:
            key: of the entry; for a wrapped service or function, what its ``key_of`` returns.

        Returns:
            Whether memory and all tiers removed it. This cache ignores what a tier that failed still has; other
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
        """Begin a legal hold: until :meth:`release`, no entry of a subject or class is erased or purged.

        The log records the hold, so it outlives the process. What leaves memory stays in the process (``preserved``),
        and what lies on a `DiskTier` stays in its file; neither is returned to callers after its time. The reason must
        name no person: give a case number, for example.

        Returns:
            The tiers that cannot hold, such as Redis: their entries expire at their time.

        Raises:
            TypeError, ValueError: not exactly one of the two, or the policy has no such class or no `RetentionLog`.
            BackendError, Closed: the log or a tier did not record the hold; call :meth:`hold` again.
        """
        return await self._governed().set_hold(self.tiers, subject, data_class, reason, on=True)

    async def release(self, *, subject: str | None = None, data_class: str | None = None, reason: str) -> None:
        """End a legal hold and free what it preserved beyond its time. Arguments and errors: those of :meth:`hold`."""
        await self._governed().set_hold(self.tiers, subject, data_class, reason, on=False)

    @property
    def preserved(self) -> tuple[CacheEvent, ...]:
        """Entries that are preserved, not returned: they left memory under legal hold or below their minimum age."""
        retention = self._memory.retention
        return () if retention is None else retention.preserved

    async def retention_report(self) -> RetentionReport:
        """Report the policy's rules, what memory and the tiers hold, and the recorded removals.

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
        """The policy's `RetentionLog`, else one in memory on the cache's clock; ``None`` before the first erasure."""
        return self._memory.erasure_log

    def bind_clock(self, clock: Clock) -> None:
        """Use the clock of a `Stack`, unless one was given. Entries keep their expiry instants."""
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
    check_instance("key", key, str | bytes, "a string or bytes, which tiers can name")
