"""What `EdgeCache.wrap` returns: a cache in front of a service or a function, sync or async.

A call looks its key up first. **Fresh**: that is the answer. **Stale** (expired, but not for long): that is the answer
too, and one refresh begins behind it; as long as refreshes fail it goes on being the answer, until the window ends.
**Outdated** (beyond ``stale_while_revalidate_s``): it is computed, and is the answer only where that fails. These are
RFC 5861's *stale-while-revalidate* and *stale-if-error*; ``stale_s`` is the default of both windows, and then nothing
is outdated. A refresh is late after four times what the slowest computation of late took, at least 1 s; 10 s where
none is known. It is then cancelled, and the key refreshed again.
**Negative**: the error that was kept. **Missing**: single flight (``_flight_cy``), and what was computed is kept.

What is never kept: the answer to a request of a live stream (it is not looked up either) or one with ``store=False``, a
degraded answer, an answer computed while something was erased (it might be what was erased) or while the model was
replaced (it might be the other model's), and an answer whose computation said :func:`~streaminfer.caching.no_store`.

**The key** holds what was wrapped (``identity``), so that one cache can serve many; a service whose fingerprint may
change (``fingerprint_changes``) is looked at for each request. Then the tenant, the subject, the tags, and the inputs
or the request's own ``key``. Subject and tags are in it so that erasing one erases all that came of its data, and only
that; and so that no caller gets an entry that lasts longer than its own tags allow.

**Tiers** are asked by who leads a flight, before it computes. What they have counts as if memory had had it: fresh, or
stale, which begins a refresh as well. A refresh asks them too, since another machine may have been faster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, cast

from streaminfer._internal.validation import expected
from streaminfer.caching.keys import key_maker
from streaminfer.caching.single_flight._loop_flights_cy import LATE_S
from streaminfer.caching.single_flight.flights import SingleFlight
from streaminfer.caching.wrapping._hit_path_cy import HitPath, Miss, copy_out
from streaminfer.caching.wrapping.argument_labels import ArgumentLabels
from streaminfer.caching.wrapping.batched_function import FunctionAsService, as_function, is_batched
from streaminfer.caching.wrapping.cached_calls import CachedCalls
from streaminfer.caching.wrapping.defensive_copy import copy_error, keep
from streaminfer.caching.wrapping.layer import NEGATIVE, OUTDATED, STALE, Layer
from streaminfer.caching.wrapping.layer_table import Table
from streaminfer.caching.wrapping.memoize import cached_function
from streaminfer.caching.wrapping.wrapped_identity import identity_of
from streaminfer.errors import DeadlineExceeded
from streaminfer.protocols import Capabilities, Wrapper, adapt
from streaminfer.request import Request, Response, time_left_s
from streaminfer.resilience._targets import kind_of

if TYPE_CHECKING:
    from streaminfer.caching.table._table_cy import EdgeTable

__all__ = ["CachedService", "put_in_front"]


def put_in_front(
    cache: Table,
    inner: Any,
    flights: SingleFlight,
    *,
    secret: bytes | None = None,
    subject: str | None = None,
    tags: Iterable[str] = (),
) -> Any:
    """A cached thing of the same kind.

    Args:
        cache: where answers are kept.
        inner: a service, or a sync or async function. A function's arguments have to be such as ``content_key`` takes;
            a method's object needs a ``fingerprint``. A function that takes ``timeout_s``, ``priority``, ``stream_id``,
            ``tenant`` and ``key``, as a batcher makes them, is cached as a service is: these say how it is asked.
        flights: the cache's.
        secret: for keys that cannot be forged; see ``content_key``.
        subject: of a function that is not cached as a service is, the name of a parameter; see ``ArgumentLabels``.
        tags: the same, several.

    Returns:
        A :class:`CachedService`, or a function; its ``key_of`` gives the key of a request, or of a call's arguments,
        so that an entry can be looked at or deleted.

    Raises:
        TypeError: a backend, which answers batches and not requests, or nothing that can be called.
        ValueError: names that are no parameters.
    """
    kind = kind_of(inner)
    if kind == "backend":
        what = "a service or a function; a backend answers whole batches: put the cache before the batcher"
        raise TypeError(expected("inner", what, inner))
    identity, lasting = identity_of(inner)
    if cache.tiers is not None:
        _check_for_tiers(inner, kind, lasting)
    table = cast("EdgeTable", cache)
    if kind == "service":
        _check_names(subject, tags)
        return CachedService(
            cache, inner, flights, lambda: HitPath(table, key_maker(identity_of(inner)[0], "", "", secret))
        )
    labels = None if is_batched(inner) else ArgumentLabels(inner, subject, tags)
    front = HitPath(table, key_maker(identity if labels is None else identity + labels.identity, "", "", secret))
    if labels is None:
        _check_names(subject, tags)
        service = CachedService(cache, FunctionAsService(inner, front.now), flights, lambda: front)
        return as_function(service, inner, front.now)
    layer = CachedCalls(cache, flights, front, labels)
    if kind == "function":
        return cached_function(inner, front, layer.answer_sync, is_async=False)
    return cached_function(inner, front, layer.answer, is_async=True)


def _check_for_tiers(inner: Any, kind: str, lasting: bool) -> None:
    if kind == "function":
        what = "a service or an async function: tiers are asked on an event loop, which a sync function has none of"
        raise TypeError(expected("inner", what, inner))
    if not lasting:
        what = (
            "something that another process would find again, for a cache with tiers: give it a `fingerprint` attribute"
            " that changes whenever its answers do"
        )
        raise TypeError(expected("inner", what, inner))


def _check_names(subject: Any, tags: Any) -> None:
    if subject is not None or tuple(tags):
        what = "no names of parameters for what is asked with requests, which have a subject and tags of their own"
        raise TypeError(expected("subject, tags", what, (subject, tags)))


class CachedService(Layer, Wrapper):
    """A service behind a cache; made by ``EdgeCache.wrap``.

    Attributes:
        inner: what answers where the cache does not.
        name: of ``inner``.
    """

    enforces_deadline = True

    def __init__(self, cache: Table, inner: Any, flights: SingleFlight, make_front: Callable[[], HitPath]) -> None:
        self._make_front = make_front
        offered = adapt(inner).capabilities()
        self._changes = offered.fingerprint_changes
        self._version = 0 if self._changes is None else self._changes()  # before the fingerprint itself, see _follow
        Layer.__init__(self, cache, flights, make_front())
        Wrapper.__init__(self, inner, cache)
        self._call: Callable[[Request], Coroutine[Any, Any, Response]] = inner.call
        self._enforced = offered.enforces_deadline
        self._holds = False
        self._computing = self._compute if self.tiers is None else self._look_and_compute

    def capabilities(self) -> Capabilities:
        """What the inner service offers; each request ends at its deadline."""
        return super().capabilities()._replace(enforces_deadline=True)

    async def start(self) -> None:
        """Start the tiers.

        Raises:
            BackendError: a tier cannot start.
            RuntimeError: the tiers run on another event loop, or somebody else started one.
        """
        if self.tiers is not None:
            await self.tiers.hold()
            self._holds = True

    def key_of(self, request: Request) -> bytes:
        """The key under which the answer to a request is kept.

        Raises:
            InvalidInput: its inputs, or its own key, cannot be keyed.
        """
        if self._changes is not None:
            self._follow(self._changes)
        return self._key_of(request)

    def _follow(self, changes: Callable[[], int]) -> int:
        """Take over the fingerprint if it has changed, and return the number of its changes."""
        version = changes()
        if version != self._version:
            # read after the number: keys that are newer than their number are not stored, which does no harm
            self.front = self._make_front()
            self._version = version
        return version

    def _key_of(self, request: Request) -> bytes:
        asked = ("inputs", request.inputs) if request.key is None else ("key", request.key)
        if request.tags:
            asked = (*asked, request.subject, tuple(sorted(set(request.tags))))
        elif request.subject is not None:
            asked = (*asked, request.subject)
        key: bytes = self.front.key(asked, request.tenant)
        return key

    async def call(self, request: Request) -> Response:
        """Answers a request from the cache, or as the service does.

        Raises:
            DeadlineExceeded: its deadline has passed, and the cache has no answer.
            InvalidInput: its inputs, or its own key, cannot be keyed.
            RuntimeError: it comes from inside the computation of the same key.
        """
        if request.stream_id is not None:
            return await self._alone(request, self.front.now())
        version = 0 if self._changes is None else self._follow(self._changes)
        key = self._key_of(request)
        found = self.front.find(key)
        if found.__class__ is not Miss:
            return Response(found, False, "cache")
        if not request.store and found.state != NEGATIVE:
            return await self._alone(request, found.now_ns)
        outdated = found.state == OUTDATED
        if found.state == STALE or (outdated and self.failure.is_recent()):
            self._refresh(key, request, version)
            return Response(copy_out(found.value), True, "cache")
        if found.state == NEGATIVE:
            raise copy_error(found.value)
        arguments = (key, request, not outdated, version)
        try:
            return await self._share(key, self._computing, arguments, request, found.now_ns, version)
        except Exception as error:
            if not outdated:
                raise
            self.failure.note(error)
            return Response(copy_out(found.value), True, "cache")

    def _refresh(self, key: Any, request: Request, version: int) -> None:
        longest_s = self.refresh_s() + LATE_S
        behind = request.replace(deadline_ns=self.front.now() + round(longest_s * 1e9))
        self.refresh(key, (key, behind, False, version))

    async def _share(
        self,
        key: Any,
        compute: Callable[..., Any],
        arguments: tuple[Any, ...],
        request: Request,
        now_ns: int,
        version: int = 0,
    ) -> Response:
        timeout_s = time_left_s(request.deadline_ns, now_ns)
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded(f"the deadline had passed {-timeout_s:.6f} s before arrival")
        here = self.flights.here()
        response, led = await here.share(
            key, compute, arguments, self.front.now, timeout_s=timeout_s, enforced=self._enforced, owner=self
        )
        if response.__class__ is self._stale_of_tier:
            if led and not self.failure.is_recent():
                self._refresh(key, request, version)
            return Response(copy_out(response.value), True, response.source)
        timings = response.timings if led else None  # of a request that somebody else made, they say nothing
        return Response(copy_out(response.outputs), response.degraded, response.source, timings)

    async def _alone(self, request: Request, now_ns: int) -> Response:
        if self._enforced or request.deadline_ns is None:
            return await self._call(request)
        return await self._share(object(), self._call, (request,), request, now_ns)

    async def _look_and_compute(self, key: Any, request: Request, keeps_errors: bool, version: int) -> Any:
        lookup = self.lookup(key, request.deadline_ns, is_refresh=not keeps_errors)
        found = await lookup.find()
        if found is not None and not found.is_stale:
            return Response(found.value, False, found.source)
        if found is not None and self.is_given(found):
            return found
        try:
            with lookup:
                return await self._compute(key, request, keeps_errors and found is None, version, lookup.erasures)
        except Exception as error:
            if found is None:
                raise
            self.failure.note(error)
            return found
        finally:
            await lookup.end()

    async def _compute(
        self, key: Any, request: Request, keeps_errors: bool, version: int, erasures: int | None = None
    ) -> Response:
        erasures = self.cache.erasures if erasures is None else erasures
        begun_ns = self.front.now()
        try:
            response = await self._call(request)
            outputs = keep(response.outputs)
        except Exception as error:
            # an error behind a stale answer must not take its place
            if keeps_errors and not self._changed_since(version):
                self.store_error(key, error, erasures, request.tags, request.subject)
            raise
        self.computed(begun_ns)
        if self._changed_since(version):
            self.flights.not_stored()
        elif not response.degraded:
            self.store(key, outputs, erasures, request.tags, request.subject)
        return Response(outputs, response.degraded, response.source, response.timings)

    def _changed_since(self, version: int) -> bool:
        """Whether another model than the key's may have answered."""
        return self._changes is not None and self._changes() != version

    async def stop(self, *, drain: bool = True) -> None:
        """Ends what it computes, refreshes included; a `Stack` calls it.

        Args:
            drain: wait for it; otherwise, and where the stop is cancelled, as at its limit, who waits gets ``Closed``.
        """
        here = self.flights.here()
        try:
            await here.stop(self, drain=drain)
        except asyncio.CancelledError:  # the limit of the stop: a refresh may hang
            await here.stop(self, drain=False)
            raise
        finally:
            if self._holds and self.tiers is not None:
                self._holds = False
                await self.tiers.let_go(drain=drain)

    def __repr__(self) -> str:
        return f"{self.cache!r} in front of {self.inner!r}"
