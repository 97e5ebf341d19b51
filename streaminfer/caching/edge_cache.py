"""`EdgeCache`: its settings, the mapping that it is, and what it offers beyond one."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, MutableMapping, ValuesView
from functools import partial
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, get_args, overload

from streaminfer._internal.validation import check_choice, check_count, check_instance
from streaminfer.caching._locking import guarded, is_atomic
from streaminfer.caching.arguments import Labels, duration_ns, labels_of, max_age_ns
from streaminfer.caching.table._table_cy import NO_LIMIT, EdgeTable
from streaminfer.caching.table._timer_wheel_cy import NEVER
from streaminfer.caching.table.events import CacheEvent, CacheEvents
from streaminfer.caching.table.views import FreshItems, FreshValues
from streaminfer.caching.tiers.async_access import TieredMapping
from streaminfer.caching.wrapping.freshness import Freshness
from streaminfer.protocols import Clock, P, R, Service

if TYPE_CHECKING:
    from streaminfer.caching.cache_statistics import CacheStatistics
    from streaminfer.caching.erasure.custody import Custody
    from streaminfer.caching.erasure.erasure import Erasure, PendingErasure
    from streaminfer.caching.erasure.retention_counts import RetentionCounts
    from streaminfer.caching.table.departed_values import Departed
    from streaminfer.caching.tiers.tier_set import TierSet
    from streaminfer.caching.wrapping.memoize import CachedFunction
    from streaminfer.compliance.retention import Retention
    from streaminfer.compliance.retention_log import RetentionLog

    _Table = EdgeTable
else:
    _Table = EdgeTable if is_atomic(EdgeTable) else guarded(EdgeTable)

__all__ = ["EdgeCache"]

_MOST_ENTRIES = 2**30
_MOST_BYTES = 2**60
_NOTHING: Any = object()

Eviction = Literal["lru", "s3fifo"]


class EdgeCache(_Table, TieredMapping, MutableMapping[Any, Any]):
    """Keeps answers for a while, within limits: a mapping whose entries expire.

    An entry is fresh until its time has passed: expired means now ≥ expiry. A time of a minute or more may be counted
    from the system's last tick, at most 10 ms earlier. The mapping's methods, ``len`` and the
    size see fresh entries only. Iterating, and ``keys()``, ``values()`` and ``items()``, go over a snapshot, the next
    to be evicted first, and count as no use; the cache may change meanwhile.

    Expired entries leave memory within 0.25 s after their time, whether the cache is used or not: one daemon thread
    sweeps all caches (``sweeping`` has the rules). A cache with a ``clock`` is swept when values are stored and by
    :meth:`expire`, but not by the thread.

    Args:
        maxsize: how many entries it may hold, stale ones and failures included; ``None``: any number.
        max_bytes: how many bytes their values may have; ``None``: any number. Arrays weigh what they keep in memory;
            the rules are those of ``sizing.payload_bytes``. The cache itself takes about 100 bytes an entry besides.
        ttl_s: how long an entry is fresh, seconds; ``None``: for good, unless ``put`` says otherwise. A computation may
            say less, with ``fresh_for``.
        ttl_jitter: share of its time, 0 ≤ share < 1, by which the answer of a wrapped call is fresh for less at most,
            drawn for each, so that answers of one moment do not all end in one.
        stale_s: how much longer it is kept for a wrapped call to answer with: the default of both windows.
        stale_while_revalidate_s: for how long it is the answer at once, while a refresh runs behind it; ``None``:
            ``stale_s``.
        stale_if_error_s: for how long it is the answer where computing another fails; what is beyond the other window
            is computed first, before its caller. ``None``: ``stale_s``.
        negative_ttl_s: how long a failure of a wrapped call is remembered; 0: not at all.
        eviction: who goes when there is no room: ``"lru"``, the one that was not used for longest, or ``"s3fifo"``,
            which lets what is used once pass through without driving out what is used again.
        retention: a ``Retention`` policy: how long what may be kept, and on which tiers. ``ttl_s`` and
            ``negative_ttl_s`` are cut to it.
        tiers: slower caches behind this one, the fastest first: ``DiskTier``, ``RedisTier``. They are asked and written
            by what :meth:`wrap` returned for a service or an async function, and by :meth:`fetch` and
            :meth:`put_through`; the mapping's methods are about memory alone, and ``del`` and ``clear`` leave the tiers
            as they are. A `Stack` starts and stops them with its service, else ``async with cache:``.
        secret: at least 16 secret bytes, where callers are not trusted: the keys of what :meth:`wrap` returned are then
            made by a keyed hash, so that nobody can make two inputs that share one. The same for all who share a tier.
            ``None``: a faster hash, for callers who are.
        seed: of the draws for ``ttl_jitter``, ≥ 0; ``None``: from the operating system.
        clock: returns monotonic nanoseconds, ≥ 0; ``None``: the `Stack`'s clock, else the monotonic clock, read in C.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range; a ``stale_s`` that is as long as a maximum
            age of the policy; a tier without keys, where the policy wants encryption.

    Attributes:
        freshness: the settings of time.
        tiers: the tiers, with ``statistics()`` of each; ``None``: there are none.
        departed: answers that left and still live, for ``si.prove``; ``None``: there is no policy.

    Threads: any number may use it at once. Compiled, under the interpreter lock, no lock is taken; otherwise each
    operation takes one. Nothing of the caller's is called, and no value is freed, while the table is in the midst of a
    change.

    Garbage: cached objects are not walked by the collector, so a cycle from a cached value back to its cache is only
    freed when the entry goes.

    Example:
        >>> cache = EdgeCache(maxsize=2, ttl_s=60.0)
        >>> cache["a"], cache["b"], cache["c"] = 1, 2, 3
        >>> list(cache), cache.get("a"), cache.statistics().evictions
        (['b', 'c'], None, 1)
    """

    __slots__ = (
        "__weakref__",
        "_clock_given",
        "_custody",
        "_flights",
        "_heard",
        "_ledger",
        "_own_log",
        "_policy",
        "_secret",
        "_settings",
        "departed",
        "freshness",
        "tiers",
    )

    def __new__(cls, *_: Any, retention: Retention | None = None, **__: Any) -> Self:
        """One with a policy notes when each value came, also by the mapping's methods; others need not."""
        if retention is not None and cls is EdgeCache:
            from streaminfer.caching.governed_cache import GovernedCache  # noqa: PLC0415 - a subclass

            return super().__new__(GovernedCache)  # type: ignore[return-value]
        return super().__new__(cls)

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
        check_instance("clock", clock, lambda it: it is None or callable(it), "a callable or None")
        self.freshness = times = Freshness(
            ttl_s=ttl_s,
            ttl_jitter=ttl_jitter,
            stale_s=stale_s,
            stale_while_revalidate_s=stale_while_revalidate_s,
            stale_if_error_s=stale_if_error_s,
            negative_ttl_s=negative_ttl_s,
            seed=seed,
            policy=retention,
        )
        if secret is not None:
            from streaminfer.caching.keys import check_secret  # noqa: PLC0415 - a mapping alone makes no keys

            check_secret(secret)
        self._secret = secret
        self._policy = retention
        self._settings = (maxsize, max_bytes, eviction)
        super().__init__(
            NO_LIMIT if maxsize is None else check_count("maxsize", maxsize, at_most=_MOST_ENTRIES),
            NO_LIMIT if max_bytes is None else check_count("max_bytes", max_bytes, at_most=_MOST_BYTES),
            self.lasts_ns(None, ()),
            times.stale_ns,
            times.negative_ns,
            check_choice("eviction", eviction, get_args(Eviction)) == "s3fifo",
            clock,
        )
        self.revalidate_ns = times.revalidate_ns
        self._clock_given = clock is not None
        self._heard = CacheEvents()
        self._flights: Any = None
        self._ledger: RetentionCounts | None = None
        if retention is not None and retention.log is not None:
            from streaminfer.caching.erasure.retention_counts import RetentionCounts  # noqa: PLC0415 - only with a policy

            self._ledger = RetentionCounts(retention.log, self.now)
            self._heard.listen(self, self._ledger.hear)
        self._custody: Custody | None = None
        if retention is not None and (retention.log is not None or retention.has_min_age):
            from streaminfer.caching.erasure.custody import Custody  # noqa: PLC0415 - only with a policy

            self._custody = Custody(retention, self, self._ledger)
            self._heard.listen(self, self._custody.hear)
        self._own_log: RetentionLog | None = None
        self.departed: Departed | None = None
        if retention is not None:
            from streaminfer.caching.table.departed_values import Departed  # noqa: PLC0415 - only with a policy

            self.departed = Departed()
            self._heard.listen(self, self.departed.hear)
        check_instance("tiers", tiers, lambda it: isinstance(it, Iterable), "several tiers, as in a tuple")
        several = tuple(tiers)
        self.tiers: TierSet | None = None
        if several:
            from streaminfer.caching.tiers.tier_set import TierSet  # noqa: PLC0415 - only with tiers

            own = {"ttl_ns": times.ttl_ns, "stale_ns": times.stale_ns}
            self.tiers = TierSet(several, self, **own, policy=retention, counts=self._ledger)
        self._await_sweep()

    @overload
    def wrap(self, inner: Service) -> Any: ...
    @overload
    def wrap(
        self, inner: Callable[P, R], *, subject: str | None = None, tags: Iterable[str] = ()
    ) -> CachedFunction[P, R]: ...
    def wrap(self, inner: Any, *, subject: str | None = None, tags: Iterable[str] = ()) -> Any:
        """Puts the cache in front of a service or a function, sync or async; any number of them share it.

        Answers are kept under the content of what was asked and the name of what was wrapped. Callers that ask for the
        same at once share one computation. What belongs to a stream, is degraded, or must not be stored, is not kept.

        Args:
            inner: an object with ``call``, or a function whose arguments `content_key` takes.
            subject: of a function, the name of the parameter that says whose data an answer is, to erase it by.
            tags: of a function, the names of the parameters whose values, strings or several, are its tags.

        Returns:
            The same kind. Its ``key_of`` gives the key of a request or call.

        Raises:
            TypeError: a backend, which answers whole batches: the cache stands before the batcher. With tiers: a sync
                function, or something that another process would not find again, for want of a ``fingerprint``. Names
                of parameters for what is asked with requests, which have a subject and tags of their own.
            ValueError: names that are no parameters.
            MissingExtra: xxhash is not installed.
        """
        from streaminfer.caching.single_flight.flights import SingleFlight  # noqa: PLC0415
        from streaminfer.caching.wrapping.cached_service import put_in_front  # noqa: PLC0415 - a mapping alone does not need it

        if self._flights is None:
            self._flights = SingleFlight()
        return put_in_front(self, inner, self._flights, secret=self._secret, subject=subject, tags=tags)

    @property
    def flights(self) -> Any:
        """`FlightStatistics` of what was wrapped: how many computations were shared; ``None`` before anything was."""
        return None if self._flights is None else self._flights.statistics()

    # -- the rest of a mapping ----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return iter(self.snapshot(0))

    def values(self) -> ValuesView[Any]:
        """The fresh values; iterating goes over a snapshot and counts as no use."""
        return FreshValues(self)

    def items(self) -> ItemsView[Any, Any]:
        """The fresh keys and values; iterating goes over a snapshot and counts as no use."""
        return FreshItems(self)

    def pop(self, key: Any, default: Any = _NOTHING) -> Any:
        """Removes a fresh entry and returns its value; counts as no use.

        Raises:
            KeyError: there is none, and no default.
        """
        value = self.take(key, _NOTHING)
        if value is not _NOTHING:
            return value
        if default is _NOTHING:
            raise KeyError(key)
        return default

    # -- what a mapping does not have ----------------------------------------------------------------------------

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
        """Keeps a value.

        Args:
            key: hashable.
            value: anything.
            ttl_s: how long it is fresh, seconds ≥ 0; ``None``: the cache's. At most what the policy allows its class.
            size: its bytes, ≥ 0; ``None``: measured.
            tags: words to erase it by.
            subject: whose data it is, to erase it by.

        Returns:
            Whether it was kept: a value that is larger than the whole cache is not, and what was there before has gone.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range.
        """
        ttl_ns = -1 if ttl_s is None else duration_ns("ttl_s", ttl_s)
        weight = -1 if size is None else check_count("size", size, at_least=0, at_most=_MOST_BYTES)
        labels = labels_of(subject, tags)
        if self._policy is not None:
            ttl_ns, labels = self._governed(ttl_ns, labels, 0)
        return self.store(key, value, ttl_ns, weight, labels)

    def put_negative(
        self,
        key: Any,
        error: Any,
        *,
        ttl_s: float | None = None,
        tags: Iterable[str] = (),
        subject: str | None = None,
    ) -> bool:
        """Remembers a failure for ``negative_ttl_s``, for ``lookup`` to find; the mapping's methods do not see it.

        A fresh or stale value is worth more and stays.

        Args:
            key: hashable.
            error: what to remember.
            ttl_s: for how long, seconds; ``None``: the cache's ``negative_ttl_s``.
            tags: words to erase it by.
            subject: whose data it is.

        Returns:
            Whether it was kept.
        """
        ttl_ns = -1 if ttl_s is None else duration_ns("ttl_s", ttl_s)
        labels = labels_of(subject, tags)
        if self._policy is not None:
            if ttl_ns < 0:
                ttl_ns = duration_ns("negative_ttl_s", self.negative_ttl_s)
            ttl_ns = min(ttl_ns, max_age_ns(self._policy.rule(() if labels is None else labels[1])))
            _, labels = self._governed(0, labels, 0)
        return self.store_negative(key, error, ttl_ns, labels)

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
        return self._begin_erasure(subject, tag).in_memory

    async def erase_everywhere(self, *, subject: str | None = None, tag: str | None = None) -> Erasure:
        """Erase as :meth:`erase` does, and wait until each tier has been tried; on any event loop.

        Returns:
            Entries erased by place, and why a tier failed. Cancelling the caller does not end the erasure.
        """
        return await self._begin_erasure(subject, tag).wait()

    def _begin_erasure(self, subject: str | None, tag: str | None) -> PendingErasure:
        from streaminfer.caching.erasure.erasure import PendingErasure, check_selection  # noqa: PLC0415 - not every cache is erased

        subject, tag = check_selection(subject, tag)
        if self._custody is not None:
            self._custody.check(subject, tag)
        if self.tiers is not None:
            return self.tiers.erase(subject, tag, partial(self._erase_memory, subject, tag))
        erasing = PendingErasure(subject, tag)
        erasing.arm(self._erase_memory(subject, tag))
        return erasing

    def _erase_memory(self, subject: str | None, tag: str | None) -> int:
        count: int = self.erase_labelled(subject, tag)
        if self._custody is not None:
            count += self._custody.erase(subject, tag)
        if self._ledger is not None:
            self._ledger.record("erased", where="memory", count=count, reason="asked for", subject=subject, tag=tag)
        self._remember_erasure(subject, tag, count)
        return count

    def listen(self, listener: Callable[[CacheEvent], object]) -> Callable[[], None]:
        """Tells ``listener`` each :class:`CacheEvent` from now on: evictions, expiries, erasures.

        It is called by the operation that caused the event, or by who sweeps, with no lock held and the cache whole; it
        may use the cache and should be quick. What it raises is logged (``streaminfer.caching``), counted, and changes
        nothing.

        Returns:
            A function that ends it.
        """
        return self._heard.listen(self, listener)

    def statistics(self) -> CacheStatistics:
        """A frozen snapshot; its counting rules are written there."""
        from streaminfer.caching.cache_statistics import CacheStatistics  # noqa: PLC0415 - who asks for a snapshot loads what it is made of

        return CacheStatistics.of(self.counters(), self._heard.errors)

    @property
    def size(self) -> int:
        """The bytes of the fresh values."""
        return self.counters()[1]

    @property
    def maxsize(self) -> int | None:
        """How many entries it may hold; ``None``: any number."""
        return self._settings[0]

    @property
    def max_bytes(self) -> int | None:
        """How many bytes of values it may hold; ``None``: any number."""
        return self._settings[1]

    @property
    def ttl_s(self) -> float | None:
        """How long an entry is fresh; ``None``: for good, or as long as the policy allows."""
        return self.freshness.ttl_s

    @property
    def stale_s(self) -> float:
        """How much longer it is kept as stale, by the longer of both windows."""
        return self.freshness.stale_s

    @property
    def negative_ttl_s(self) -> float:
        """How long a failure is remembered; 0: not at all."""
        return self.freshness.negative_ttl_s

    @property
    def eviction(self) -> Eviction:
        """Which entries go when there is no room."""
        return self._settings[2]

    # -- time ---------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """The present instant on the cache's clock, monotonic nanoseconds."""
        return monotonic_ns() if self.clock is None else self.clock()

    def bind_clock(self, clock: Clock) -> None:
        """Takes over the clock of a `Stack`, unless one was given. Entries keep their instants."""
        if not self._clock_given:
            self._clock_given = True
            self.clock = clock
            self._await_sweep()

    def _await_sweep(self) -> None:
        """Has the thread sweep what is due, unless the cache has a clock that the thread cannot read."""
        if self.clock not in (None, monotonic_ns):
            self.wake_ns = -1  # no entry goes before this
            return
        self.wake_ns = NEVER
        next_ns = self.sweep(self.now(), 0)
        if next_ns != NEVER:
            self.wake_ns = next_ns
            self._wake(next_ns)

    def _wake(self, at_ns: int) -> None:
        from streaminfer.caching.table.expiry import THREAD  # noqa: PLC0415 - only where something expires

        THREAD.wake(self, at_ns)

    def sweep(self, now_ns: int, limit: int) -> int:
        """Frees what is due, and has it recorded where the policy has a log; for who sweeps."""
        next_ns = super().sweep(now_ns, limit)
        if self._custody is not None and self._custody.entries:
            next_ns = min(next_ns, self._custody.settle(now_ns))
        if self._ledger is not None:
            self._ledger.flush()
        return next_ns

    # -- inside -------------------------------------------------------------------------------------------------

    def lasts_ns(self, ttl_s: float | None, tags: Iterable[str]) -> int:
        """How long a value is fresh: as asked, or as the cache says, but never longer than the policy allows."""
        return self.freshness.lasts_ns(ttl_s, tags)

    def _governed(self, ttl_ns: int, labels: Labels, age_ns: int) -> tuple[int, Labels]:
        """A time within the policy, and labels with class and instant: what the inventory is made of."""
        policy = self._policy
        assert policy is not None  # noqa: S101 - or nobody calls this
        subject, tags = (None, ()) if labels is None else labels[:2]
        rule = policy.rule(tags)
        longest_ns = max(max_age_ns(rule) - self.freshness.stale_ns - age_ns, 0)
        ttl_ns = min(self.freshness.ttl_ns if ttl_ns < 0 else ttl_ns, longest_ns)
        return ttl_ns, (subject, tags, rule.data_class, self.now() - age_ns)

    def tell(self) -> None:
        """Tells and frees what was noted; operations do so themselves."""
        self._heard.deliver(self.drain)

    if is_atomic(EdgeTable):
        _tell = tell

    def __reduce__(self) -> NoReturn:
        raise TypeError("an EdgeCache cannot be copied or pickled")

    def __repr__(self) -> str:
        limits = [
            f"{name}={value}" for name, value in (("maxsize", self.maxsize), ("max_bytes", self.max_bytes)) if value
        ]
        return f"<EdgeCache({', '.join([self.eviction, *limits])})>"

    def _repr_html_(self) -> str:
        return self.statistics()._repr_html_()
