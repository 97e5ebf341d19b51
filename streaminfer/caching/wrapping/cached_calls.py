"""Misses of cached functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streaminfer.caching.defensive_copy import freeze
from streaminfer.caching.single_flight._flight_cy import Refreshes
from streaminfer.caching.single_flight.flights import SingleFlight
from streaminfer.caching.wrapping._hit_path_cy import HitPath, Miss, copy_out
from streaminfer.caching.wrapping.argument_labels import ArgumentLabels
from streaminfer.caching.wrapping.layer import OUTDATED, Layer

if TYPE_CHECKING:
    from streaminfer.caching.tiers.async_access import TierAccess

__all__ = ["CachedCalls"]

_MAX_THREADS = 8


class CachedCalls(Layer):
    """Misses of one cached function."""

    def __init__(self, access: TierAccess, flights: SingleFlight, hit_path: HitPath, labels: ArgumentLabels) -> None:
        super().__init__(access, flights, hit_path)
        self._labels = labels
        self._thread_refreshes = Refreshes(_MAX_THREADS)

    async def resolve(self, missed: Miss, call: Callable[[], Any]) -> Any:
        """Return the result of an async function after a miss."""
        key = missed.key
        here = self.flights.here()
        outdated = missed.state == OUTDATED
        if self.gives_stale(missed):
            self.refresh(key, (key, call, False))
            return copy_out(missed.value)
        try:
            value, led = await here.share(key, self._computing, (key, call, not outdated), self.hit_path.now)
        except Exception as error:
            if not outdated:
                raise
            self.note_failure(error)
            return copy_out(missed.value)
        if value.__class__ is self._tier_hit:
            if value.is_stale and led and not self.fails_now():
                self.refresh(key, (key, call, False))
            value = value.value
        return copy_out(value)

    def resolve_sync(self, missed: Miss, call: Callable[[], Any]) -> Any:
        """Return the result of a sync function after a miss."""
        key = missed.key
        outdated = missed.state == OUTDATED
        if self.gives_stale(missed):
            self.flights.threads.refresh(
                key,
                self._compute_sync,
                (key, call, False),
                self.hit_path.now,
                refreshes=self._thread_refreshes,
                limit_s=self.refresh_s(),
            )
            return copy_out(missed.value)
        try:
            value, _ = self.flights.threads.share(key, self._compute_sync, (key, call, not outdated), self.hit_path.now)
        except Exception as error:
            if not outdated:
                raise
            self.note_failure(error)
            return copy_out(missed.value)
        return copy_out(value)

    async def _compute(self, key: Any, asked: Any, stores_errors: bool, erasures: int | None = None) -> Any:
        erasures = self.memory.erasures if erasures is None else erasures
        begun_ns = self.hit_path.now()
        subject, tags = self._labels.of(asked)
        try:
            value = freeze(await asked())
        except Exception as error:
            if stores_errors:
                self.store_error(key, error, erasures, tags, subject)
            raise
        self.computed(begun_ns)
        self.store(key, value, erasures, tags, subject)
        return value

    def _compute_sync(self, key: Any, call: Callable[[], Any], stores_errors: bool) -> Any:
        erasures = self.memory.erasures
        begun_ns = self.hit_path.now()
        subject, tags = self._labels.of(call)
        try:
            value = freeze(call())
        except Exception as error:
            if stores_errors:
                self.store_error(key, error, erasures, tags, subject)
            raise
        self.computed(begun_ns)
        self.store(key, value, erasures, tags, subject)
        return value
