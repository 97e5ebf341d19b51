"""Cached services and functions, sync or async: the results of `EdgeCache.wrap`.

*States.* A call first looks up its key. The entry can be

* fresh: its value is the response;
* stale (expired, within ``stale_while_revalidate_s``): its value is the response, and one refresh runs in the
  background;
* outdated (beyond that, within ``stale_if_error_s``): the value is computed; if that fails, the old value is the
  response;
* negative: the stored error is raised;
* missing: single flight (``_flight_cy``) computes the value and stores it.

These windows are those of RFC 5861. If both have their default, ``stale_s``, no entry is outdated. A refresh is late
after four times the duration of the slowest recent computation, at least 1 s; after 10 s if no duration is known. It is
then cancelled, and the key can be refreshed again.

*Not stored.* These responses are not stored:

* to a request of a stream (which is not looked up either) or with ``store=False``;
* degraded ones;
* those for which, during the computation, the key was erased, a value was put under it, or the model was replaced;
* those whose computation called :func:`~streaminfer.caching.no_store`.

*Keys.* A key holds the identity of the wrapped object, so that one cache can serve several. If the fingerprint of a
service may change (``fingerprint_changes``), it is checked for each request. The key also holds the tenant, the
subject, the tags, and the inputs or the request's own ``key``. Because of subject and tags, an erasure removes exactly
the entries that were computed from the erased data. For the same reason no caller gets an entry that lasts longer than
its own tags allow.

*Tiers.* The leader of a flight reads the tiers before it computes. An entry of a tier counts like one of memory. A
refresh reads the tiers too, because another machine may have refreshed the entry already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from streaminfer._internal.validation import expected
from streaminfer._runtime.closing import close_answers
from streaminfer._runtime.wrapped_kind import kind_of
from streaminfer.caching.defensive_copy import freeze
from streaminfer.caching.keys import key_maker
from streaminfer.caching.single_flight._loop_flights_cy import LATE_S, Caller, Work
from streaminfer.caching.single_flight.flight_context import no_store
from streaminfer.caching.tiers.protocol import TierHit
from streaminfer.caching.wrapping._hit_path_cy import HitPath, Miss, copy_out
from streaminfer.caching.wrapping.batched_function import FunctionAsService, as_function, is_batched
from streaminfer.caching.wrapping.cached_calls import ArgumentLabels, CachedCalls, cached_function
from streaminfer.caching.wrapping.layer import NEGATIVE, OUTDATED, Layer
from streaminfer.caching.wrapping.wrapped_identity import identity_of
from streaminfer.errors import DeadlineExceeded
from streaminfer.protocols import Capabilities, Wrapper, adapt
from streaminfer.request import Request, Response, passed_on_arrival, time_left_s

if TYPE_CHECKING:
    from streaminfer.caching.edge_cache import EdgeCache
    from streaminfer.caching.freshness import About

__all__ = ["CachedService", "wrap_inner"]


def wrap_inner(cache: EdgeCache, inner: Any, subject: str | None, tags: Iterable[str]) -> Any:
    """Return a cached service or function of the same kind.

    Args:
        cache: the cache.
        inner: a service, or a sync or async function. `content_key` must accept the function's arguments; a method's
            object needs a ``fingerprint``. A function with ``timeout_s``, ``priority``, ``stream_id``, ``tenant`` and
            ``key``, as a batcher makes them, is cached as a service, because these are the fields of a request.
        subject: for a function that is not cached as a service, the name of a parameter; see `ArgumentLabels`.
        tags: for such a function, names of parameters; see `ArgumentLabels`.

    Returns:
        A :class:`CachedService`, or a function. Its ``key_of`` returns the key of a request, or of a call's arguments,
        for looking at an entry or deleting it.

    Raises:
        TypeError: ``inner`` is a backend, which takes batches, or cannot be called.
        ValueError: a name is not a parameter of the function.
    """

    def hit_path_of(identity: str) -> HitPath:
        return HitPath(cache._memory, key_maker(identity, secret=cache._secret))

    kind = kind_of(inner)
    if kind == "backend":
        expectation = "a service or a function; a backend takes whole batches: put the cache before the batcher"
        raise TypeError(expected("inner", expectation, inner))
    identity, is_persistent = identity_of(inner)
    if cache.tiers is not None:
        _check_for_tiers(inner, kind, is_persistent)
    if kind != "service" and not is_batched(inner):
        labels = ArgumentLabels(inner, subject, tags)
        layer = CachedCalls(cache, hit_path_of(identity + labels.identity), labels)
        return cached_function(inner, layer, is_async=kind != "function")
    if subject is not None or tuple(tags):
        expectation = "no names of parameters for a service, whose requests have a subject and tags of their own"
        raise TypeError(expected("subject, tags", expectation, (subject, tags)))
    if kind == "service":
        return CachedService(cache, inner, lambda: hit_path_of(identity_of(inner)[0]))
    hit_path = hit_path_of(identity)
    return as_function(CachedService(cache, FunctionAsService(inner, cache._memory.now), lambda: hit_path), inner)


def _check_for_tiers(inner: Any, kind: str, is_persistent: bool) -> None:
    if kind == "function":
        expectation = (
            "a service or an async function: tiers are read on an event loop, which a sync function has none of"
        )
        raise TypeError(expected("inner", expectation, inner))
    if not is_persistent:
        expectation = (
            "something that another process would find again, for a cache with tiers: give the model or backend a "
            "`fingerprint` attribute that changes whenever its responses do, and layers of yours in between one too; "
            "around several models put the cache into the stack of each"
        )
        raise TypeError(expected("inner", expectation, inner))


def _shared_response(response: Response, led: bool) -> Response:
    timings = response.timings if led else None  # timings of another caller's request do not apply to this one
    return Response(copy_out(response.outputs), response.degraded, response.source, timings)


class CachedService(Layer, Wrapper):
    """Cached service; `EdgeCache.wrap` makes it.

    Attributes:
        cache: the `EdgeCache`.
        inner: the service.
        name: the name of ``inner``.
    """

    def __init__(self, cache: EdgeCache, inner: Any, make_hit_path: Callable[[], HitPath]) -> None:
        self.cache = cache
        self._make_hit_path = make_hit_path
        offered = adapt(inner).capabilities()
        self._changes = offered.fingerprint_changes
        self._version = 0 if self._changes is None else self._changes()  # before the fingerprint itself, see _follow
        Layer.__init__(self, cache, make_hit_path())
        Wrapper.__init__(self, inner, cache)
        self._call: Callable[[Request], Coroutine[Any, Any, Response]] = inner.call
        self._enforced = offered.enforces_deadline

    def capabilities(self) -> Capabilities:
        """Return the capabilities of the inner service; each request ends at its deadline."""
        return super().capabilities()._replace(enforces_deadline=True)

    @property
    def left_to_owner(self) -> Sequence[Any]:
        """The wrapped service."""
        return (self.inner,)

    async def start(self) -> None:
        """Start the tiers.

        Raises:
            BackendError: a tier cannot start.
            RuntimeError: the tiers run on another event loop, or a tier was already started elsewhere.
        """
        if self.tiers is not None:
            await self.tiers.hold(self)

    def key_of(self, request: Request) -> bytes:
        """Return the key under which the response to a request is stored.

        Raises:
            InvalidInput: the inputs of the request, or its own key, cannot be keyed.
        """
        if self._changes is not None:
            self._follow(self._changes)
        return self._key_of(request)

    def _follow(self, changes: Callable[[], int]) -> int:
        """Use the current fingerprint if it has changed; return the number of its changes."""
        version = changes()
        if version != self._version:
            # read after the number: a response whose key is newer than its number is not stored, which is harmless
            self.hit_path = self._make_hit_path()
            self._version = version
        return version

    def _key_of(self, request: Request) -> bytes:
        content = ("inputs", request.inputs) if request.key is None else ("key", request.key)
        if request.tags:
            content = (*content, request.subject, tuple(sorted(set(request.tags))))
        elif request.subject is not None:
            content = (*content, request.subject)
        return self.hit_path.key(content, request.tenant)

    async def call(self, request: Request) -> Response:
        """Respond to a request from the cache, else with the service's response.

        Raises:
            DeadlineExceeded: the request's deadline has passed, and the cache has no value.
            InvalidInput: the inputs of the request, or its own key, cannot be keyed.
            RuntimeError: the request was sent from inside the computation of the same key.
        """
        if request.stream_id is not None:
            return await self._uncached(request, self.now())
        version = 0 if self._changes is None else self._follow(self._changes)
        key = self._key_of(request)
        cached = self.hit_path.find(key)
        if cached.__class__ is not Miss:
            return Response(cached, False, "cache")
        if not request.store and cached.state != NEGATIVE:
            return await self._uncached(request, cached.now_ns)
        call = (request, version)
        if self.gives_stale(cached):
            self.refresh(key, call)
            return Response(copy_out(cached.value), True, "cache")
        fallback = cached.fallback if cached.state == OUTDATED else None
        work = (self._computing, key, call, fallback is None)
        try:
            response, led = await self._share(self.flight_key(key, call), work, request, cached.now_ns)
        except Exception as error:
            if fallback is None or not self.replaces(error, key, call, fallback):
                raise
            return Response(copy_out(cached.value), True, "cache")
        if response.__class__ is TierHit:
            self.follow_up(response, led, key, call)
            response = Response(response.value, response.is_stale, response.source)
        return _shared_response(response, led)

    def refresh(self, key: Any, call: tuple[Request, int]) -> None:
        """Refresh a key; the request gets the deadline of the refresh."""
        longest_s = self.budget.refresh_s() + LATE_S
        request = call[0].replace(deadline_ns=self.now() + round(longest_s * 1e9))
        super().refresh(key, (request, call[1]))

    def _share(self, key: Any, work: Work, request: Request, now_ns: int) -> Caller:
        timeout_s = time_left_s(request.deadline_ns, now_ns)
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded(passed_on_arrival(0, round(timeout_s * 1e9)))
        if self.tiers is not None and timeout_s is not None:
            self.shorten_wait(key, round(timeout_s * 1e9))
        return self.flights.here().share(key, work, timeout_s=timeout_s, enforced=self._enforced, owner=self)

    async def _uncached(self, request: Request, now_ns: int) -> Response:
        if self._enforced:
            return await self._call(request)
        # a separate computation, which ends at the deadline and at the limit of a stop
        return _shared_response(*await self._share(object(), (self._call, request), request, now_ns))

    def _about(self, call: Any) -> About:
        request: Request = call[0]
        return request.subject, request.tags

    def flight_key(self, key: Any, call: Any) -> Any:
        """Return the key of a flight, separate for each priority, so that no caller waits for a less urgent request."""
        edition, priority = self._edition_of(key, call), call[0].priority
        return (priority, edition) if priority else edition  # in this order, because `(key, number)` is an edition

    def _deadline_ns(self, call: Any) -> int | None:
        request: Request = call[0]
        return request.deadline_ns

    async def _compute(self, key: Any, call: Any, stores_errors: bool, erasures: int | None = None) -> Response:
        request, version = call
        about, begun_ns = self._about(call), self.now()
        erasures = self.memory.erasures if erasures is None else erasures
        try:
            response = await self._call(request)
            try:
                outputs = freeze(response.outputs)
            except TypeError:  # its outputs can be read only once
                await close_answers(response)
                raise
        except Exception as error:
            self.store_error(key, about, erasures, error, stores_errors and not self._changed_since(version))
            raise
        self.budget.computed(self.now() - begun_ns)
        if self._changed_since(version):
            self.flights.not_stored()
        elif response.degraded:
            no_store()
        else:
            self.store(key, about, erasures, outputs)
        return Response(outputs, response.degraded, response.source, response.timings)

    def _changed_since(self, version: int) -> bool:
        """Return whether a model other than the key's may have responded."""
        return self._changes is not None and self._changes() != version

    async def stop(self, *, drain: bool = True) -> None:
        """End its computations, refreshes included; a `Stack` calls it.

        Args:
            drain: true waits for them. If it is false, or if the stop is cancelled at its limit, waiters get `Closed`.
        """
        here = self.flights.here()
        try:
            await here.stop(self, drain=drain)
        except asyncio.CancelledError:  # the stop reached its limit: a refresh may hang
            await here.stop(self, drain=False)
            raise
        finally:
            if self.tiers is not None:
                await self.tiers.release(self, drain=drain)
