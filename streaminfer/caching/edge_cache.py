"""`EdgeCache`: its settings, the mapping that it is, and what it offers beyond one."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, MutableMapping, ValuesView
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, NoReturn

from streaminfer._validation import check_choice, check_count, check_duration, check_instance, expected
from streaminfer.caching._locking import guarded, is_atomic
from streaminfer.caching._table_cy import NO_LIMIT, EdgeTable
from streaminfer.caching._wheel_cy import NEVER
from streaminfer.caching.cache_events import CacheEvent, CacheEvents
from streaminfer.protocols import Clock

if TYPE_CHECKING:
    from streaminfer.caching.cache_statistics import CacheStatistics

    _Table = EdgeTable
else:
    _Table = EdgeTable if is_atomic(EdgeTable) else guarded(EdgeTable)

__all__ = ["EdgeCache"]

_LONGEST_S = 1e9
_MOST_ENTRIES = 2**30
_MOST_BYTES = 2**60
_NOTHING: Any = object()


class EdgeCache(_Table, MutableMapping[Any, Any]):
    """Keeps answers for a while, within limits: a mapping whose entries expire.

    An entry is fresh until its time has passed: expired means now ≥ expiry. The mapping's methods, ``len`` and the
    size see fresh entries only. Iterating, and ``keys()``, ``values()`` and ``items()``, go over a snapshot, the next
    to be evicted first, and count as no use; the cache may change meanwhile.

    Expired entries leave memory within 0.25 s after their time, whether the cache is used or not (``sweeping`` has the
    rules): by a timer where an event loop looks after the cache, else by one daemon thread for all caches. A cache with
    a ``clock`` of its own is swept when values are stored, by :meth:`expire`, and by a loop, but not by the thread.

    Args:
        maxsize: how many entries it may hold, stale ones and failures included; ``None``: any number.
        max_bytes: how many bytes their values may have; ``None``: any number. Arrays weigh what they keep in memory;
            the rules are those of ``sizing.payload_bytes``. The cache itself takes about 100 bytes an entry besides.
        ttl_s: how long an entry is fresh, seconds; ``None``: for good, unless ``put`` says otherwise.
        stale_s: how much longer it is kept for a wrapped call to answer with while it asks anew.
        negative_ttl_s: how long a failure of a wrapped call is remembered; 0: not at all.
        eviction: who goes when there is no room: ``"lru"``, the one that was not used for longest, or ``"s3fifo"``,
            which lets what is used once pass through without driving out what is used again.
        retention: not yet.
        tiers: slower caches behind this one: objects with ``get``, ``put`` and ``erase``.
        clock: returns monotonic nanoseconds, ≥ 0; ``None``: the `Stack`'s clock, else the monotonic clock, read in C.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

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

    __slots__ = ("__weakref__", "_clock_given", "_flights", "_heard", "_settings", "_sweeper")

    def __init__(
        self,
        *,
        maxsize: int | None = None,
        max_bytes: int | None = None,
        ttl_s: float | None = None,
        stale_s: float = 0.0,
        negative_ttl_s: float = 0.0,
        eviction: str = "lru",
        retention: None = None,
        tiers: Iterable[Any] = (),
        clock: Clock | None = None,
    ) -> None:
        check_instance("clock", clock, lambda it: it is None or callable(it), "a callable or None")
        check_instance("retention", retention, lambda it: it is None, "None: retention rules are not there yet")
        check_instance("tiers", tiers, lambda it: it in ((), []), "none: a cache is not joined with its tiers yet")
        super().__init__(
            NO_LIMIT if maxsize is None else check_count("maxsize", maxsize, at_most=_MOST_ENTRIES),
            NO_LIMIT if max_bytes is None else check_count("max_bytes", max_bytes, at_most=_MOST_BYTES),
            NEVER if ttl_s is None else max(_duration_ns("ttl_s", ttl_s, positive=True), 1),
            _duration_ns("stale_s", stale_s),
            _duration_ns("negative_ttl_s", negative_ttl_s),
            check_choice("eviction", eviction, ("lru", "s3fifo")) == "s3fifo",
            clock,
        )
        self._settings = (maxsize, max_bytes, ttl_s, float(stale_s), float(negative_ttl_s), eviction)
        self._clock_given = clock is not None
        self._heard = CacheEvents()
        self._sweeper: Any = None
        self._flights: Any = None
        self.swept_by(None)

    def wrap(self, inner: Any) -> Any:
        """Puts the cache in front of a service or a function, sync or async; any number of them share it.

        Answers are kept under the content of what was asked and the name of what was wrapped. Callers that ask for the
        same at once share one computation. What belongs to a stream, is degraded, or must not be stored, is not kept.

        Args:
            inner: an object with ``call``, or a function whose arguments `content_key` takes.

        Returns:
            The same kind. Its ``key_of`` gives the key of a request or call.

        Raises:
            TypeError: a backend, which answers whole batches: the cache stands before the batcher.
            MissingExtra: xxhash is not installed.
        """
        from streaminfer.caching.cache_layer import put_in_front  # noqa: PLC0415 - a mapping alone does not need it
        from streaminfer.caching.flight_shells import Flights  # noqa: PLC0415

        if self._flights is None:
            self._flights = Flights()
        return put_in_front(self, inner, self._flights)

    @property
    def flights(self) -> Any:
        """`FlightStatistics` of what was wrapped: how many computations were shared; ``None`` before anything was."""
        return None if self._flights is None else self._flights.statistics()

    # -- the rest of a mapping ----------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return iter(self.snapshot(0))

    def values(self) -> ValuesView[Any]:
        """The fresh values; iterating goes over a snapshot and counts as no use."""
        return _Values(self)

    def items(self) -> ItemsView[Any, Any]:
        """The fresh keys and values; iterating goes over a snapshot and counts as no use."""
        return _Items(self)

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
            ttl_s: how long it is fresh, seconds ≥ 0; ``None``: the cache's.
            size: its bytes, ≥ 0; ``None``: measured.
            tags: words to erase it by.
            subject: whose data it is, to erase it by.

        Returns:
            Whether it was kept: a value that is larger than the whole cache is not, and what was there before has gone.

        Raises:
            TypeError, ValueError: an argument of the wrong type or out of range.
        """
        ttl_ns = -1 if ttl_s is None else _duration_ns("ttl_s", ttl_s)
        weight = -1 if size is None else check_count("size", size, at_least=0, at_most=_MOST_BYTES)
        return self.store(key, value, ttl_ns, weight, _labels(subject, tags))

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
        return self.store_negative(
            key, error, -1 if ttl_s is None else _duration_ns("ttl_s", ttl_s), _labels(subject, tags)
        )

    def erase(self, *, subject: str | None = None, tag: str | None = None) -> int:
        """Removes every entry of a subject, or with a tag: fresh, stale or a failure.

        Takes time in proportion to what the cache holds: about 5 ms for a million entries.

        Args:
            subject: whose.
            tag: which; give one of the two.

        Returns:
            How many went.

        Raises:
            TypeError: neither or both, or no string.
        """
        if (subject is None) == (tag is None):
            raise TypeError("erase: expected a subject or a tag, got " + ("neither" if tag is None else "both"))
        for name, word in (("subject", subject), ("tag", tag)):
            check_instance(name, word, lambda it: it is None or isinstance(it, str), "a string")
        return self.erase_labelled(None if subject is None else str(subject), None if tag is None else str(tag))

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

        entries, size, stale, negative, held, hits, misses, stale_hits, negative_hits, *rest = self.counters()
        inserted, replaced, evicted, expired, erased, removed, refused, lost = rest
        return CacheStatistics(
            entries=entries,
            size=size,
            stale=stale,
            negative=negative,
            held_bytes=held,
            hits=hits,
            misses=misses,
            stale_hits=stale_hits,
            negative_hits=negative_hits,
            inserted=inserted,
            replaced=replaced,
            evicted=evicted,
            expired=expired,
            erased=erased,
            removed=removed,
            refused=refused,
            events_lost=lost,
            listener_errors=self._heard.errors,
        )

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
        """How long an entry is fresh; ``None``: for good."""
        return self._settings[2]

    @property
    def stale_s(self) -> float:
        """How much longer it is kept as stale."""
        return self._settings[3]

    @property
    def negative_ttl_s(self) -> float:
        """How long a failure is remembered; 0: not at all."""
        return self._settings[4]

    @property
    def eviction(self) -> str:
        """``"lru"`` or ``"s3fifo"``."""
        return self._settings[5]

    # -- time ---------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """The present instant on the cache's clock, monotonic nanoseconds."""
        return monotonic_ns() if self.clock is None else self.clock()

    def bind_clock(self, clock: Clock) -> None:
        """Takes over the clock of a `Stack`, unless one was given. Entries keep their instants."""
        if not self._clock_given:
            self._clock_given = True
            self.clock = clock
            self.swept_by(self._sweeper)

    @property
    def swept_by_thread(self) -> bool:
        """Whether no event loop looks after expired entries."""
        return self._sweeper is None

    def swept_by(self, sweeper: Any) -> None:
        """Says who looks after expired entries while the cache is idle.

        Args:
            sweeper: has ``wake(cache, at_ns)``, as ``sweeping.LoopSweep`` does; ``None``: the thread, unless the cache
                has a clock of its own.
        """
        self._sweeper = sweeper
        if sweeper is None and self.clock is not None:
            self.wake_ns = -1  # nobody: no entry goes before this
            return
        self.wake_ns = NEVER
        next_ns = self.sweep(self.now(), 0)
        if next_ns != NEVER:
            self.wake_ns = next_ns
            self._wake(next_ns)

    def _wake(self, at_ns: int) -> None:
        sweeper = self._sweeper
        if sweeper is None:
            from streaminfer.caching.sweeping import THREAD as sweeper  # noqa: N811, PLC0415 - only where something expires

        sweeper.wake(self, at_ns)

    # -- inside -------------------------------------------------------------------------------------------------

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


class _Values(ValuesView[Any]):
    """Values without their being used."""

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mapping.snapshot(1))  # type: ignore[attr-defined]

    def __contains__(self, value: object) -> bool:
        return any(held is value or held == value for held in self)


class _Items(ItemsView[Any, Any]):
    """Keys and values without their being used."""

    __slots__ = ()

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        flat = iter(self._mapping.snapshot(2))  # type: ignore[attr-defined]
        return zip(flat, flat, strict=True)

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2):
            return False
        held = self._mapping.peek(item[0], _NOTHING)  # type: ignore[attr-defined]
        return held is item[1] or (held is not _NOTHING and bool(held == item[1]))


def _duration_ns(name: str, seconds: object, *, positive: bool = False) -> int:
    """Whole nanoseconds, at most 31 years, so that instants fit 64 bits."""
    return round(min(check_duration(name, seconds, positive=positive), _LONGEST_S) * 1e9)


def _labels(subject: object, tags: Any) -> tuple[str | None, tuple[str, ...]] | None:
    """Plain strings, whose comparison runs no code of the caller's."""
    if subject is None and not tags:
        return None
    if subject is not None and not isinstance(subject, str):
        raise TypeError(expected("subject", "a string or None", subject))
    if isinstance(tags, str):
        raise TypeError(expected("tags", "several strings, as in a tuple", tags))
    words = tuple(tags)
    for word in words:
        if not isinstance(word, str):
            raise TypeError(expected("tags", "strings", word))
    return None if subject is None else str(subject), tuple(map(str, words))
