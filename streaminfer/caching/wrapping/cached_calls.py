"""A function behind a cache, once its arguments are known not to be a hit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streaminfer.caching.defensive_copy import copy_error, keep
from streaminfer.caching.single_flight._flight_cy import Refreshes
from streaminfer.caching.single_flight.flights import SingleFlight
from streaminfer.caching.wrapping._hit_path_cy import HitPath, Miss, copy_out
from streaminfer.caching.wrapping.argument_labels import ArgumentLabels
from streaminfer.caching.wrapping.layer import NEGATIVE, OUTDATED, STALE, Layer

if TYPE_CHECKING:
    from streaminfer.caching.tiers.async_access import TierAccess

__all__ = ["CachedCalls"]

_MOST_THREADS = 8


class CachedCalls(Layer):
    """A function behind a cache, once its arguments are known not to be a hit."""

    def __init__(self, access: TierAccess, flights: SingleFlight, front: HitPath, labels: ArgumentLabels) -> None:
        super().__init__(access, flights, front)
        self._labels = labels
        self._computing = self._compute if self.tiers is None else self._look_and_compute
        self._thread_refreshes = Refreshes(_MOST_THREADS)

    async def answer(self, missed: Miss, ask: Callable[[], Any]) -> Any:
        """For an async function."""
        key = missed.key
        here = self.flights.here()
        outdated = missed.state == OUTDATED
        if missed.state == STALE or (outdated and self.failure.is_recent()):
            self.refresh(key, (key, ask, False))
            return copy_out(missed.value)
        if missed.state == NEGATIVE:
            raise copy_error(missed.value)
        try:
            value, led = await here.share(key, self._computing, (key, ask, not outdated), self.front.now)
        except Exception as error:
            if not outdated:
                raise
            self.failure.note(error)
            return copy_out(missed.value)
        if value.__class__ is self._stale_of_tier:
            if led and not self.failure.is_recent():
                self.refresh(key, (key, ask, False))
            value = value.value
        return copy_out(value)

    def answer_sync(self, missed: Miss, ask: Callable[[], Any]) -> Any:
        """For a sync one."""
        key = missed.key
        outdated = missed.state == OUTDATED
        if missed.state == STALE or (outdated and self.failure.is_recent()):
            self.flights.threads.refresh(
                key,
                self._compute_sync,
                (key, ask, False),
                self.front.now,
                refreshes=self._thread_refreshes,
                limit_s=self.refresh_s(),
            )
            return copy_out(missed.value)
        if missed.state == NEGATIVE:
            raise copy_error(missed.value)
        try:
            value, _ = self.flights.threads.share(key, self._compute_sync, (key, ask, not outdated), self.front.now)
        except Exception as error:
            if not outdated:
                raise
            self.failure.note(error)
            return copy_out(missed.value)
        return copy_out(value)

    async def _look_and_compute(self, key: Any, ask: Callable[[], Any], keeps_errors: bool) -> Any:
        lookup = self.lookup(key, None, is_refresh=not keeps_errors)
        found = await lookup.find()
        if found is not None and not found.is_stale:
            return found.value
        if found is not None and self.is_given(found):
            return found
        try:
            with lookup:
                return await self._compute(key, ask, keeps_errors and found is None, lookup.erasures)
        except Exception as error:
            if found is None:
                raise
            self.failure.note(error)
            return found
        finally:
            await lookup.end()

    async def _compute(self, key: Any, ask: Callable[[], Any], keeps_errors: bool, erasures: int | None = None) -> Any:
        erasures = self.memory.erasures if erasures is None else erasures
        begun_ns = self.front.now()
        subject, tags = self._labels.of(ask)
        try:
            value = keep(await ask())
        except Exception as error:
            if keeps_errors:
                self.store_error(key, error, erasures, tags, subject)
            raise
        self.computed(begun_ns)
        self.store(key, value, erasures, tags, subject)
        return value

    def _compute_sync(self, key: Any, ask: Callable[[], Any], keeps_errors: bool) -> Any:
        erasures = self.memory.erasures
        begun_ns = self.front.now()
        subject, tags = self._labels.of(ask)
        try:
            value = keep(ask())
        except Exception as error:
            if keeps_errors:
                self.store_error(key, error, erasures, tags, subject)
            raise
        self.computed(begun_ns)
        self.store(key, value, erasures, tags, subject)
        return value
