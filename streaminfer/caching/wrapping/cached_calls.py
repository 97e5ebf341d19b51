"""Misses of cached functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streaminfer.caching.defensive_copy import freeze
from streaminfer.caching.single_flight._flight_cy import Refreshes
from streaminfer.caching.wrapping._hit_path_cy import HitPath, Miss, copy_out
from streaminfer.caching.wrapping.argument_labels import ArgumentLabels
from streaminfer.caching.wrapping.layer import OUTDATED, Layer

if TYPE_CHECKING:
    from streaminfer.caching.edge_cache import EdgeCache

__all__ = ["CachedCalls"]

_MAX_THREADS = 8


class CachedCalls(Layer):
    """Misses of one cached function."""

    def __init__(self, cache: EdgeCache, hit_path: HitPath, labels: ArgumentLabels) -> None:
        super().__init__(cache, hit_path)
        self._labels = labels
        self._thread_refreshes = Refreshes(_MAX_THREADS)

    async def resolve(self, missed: Miss, call: Callable[[], Any]) -> Any:
        """Return the result of an async function after a miss."""
        key = missed.key
        if self.gives_stale(missed):
            self.refresh(key, call)
            return copy_out(missed.value)
        arguments = (key, call, missed.state != OUTDATED)
        try:
            value, led = await self.flights.here().share(key, self._computing, arguments, self.hit_path.now)
        except Exception as error:  # noqa: BLE001 - raised again, unless an outdated value replaces it
            return self.replaces(missed, error)
        if value.__class__ is self._tier_hit:
            self.follow_up(value, led, key, call)
            value = value.value
        return copy_out(value)

    def resolve_sync(self, missed: Miss, call: Callable[[], Any]) -> Any:
        """Return the result of a sync function after a miss."""
        key, threads, now = missed.key, self.flights.threads, self.hit_path.now
        if self.gives_stale(missed):
            arguments, limit_s = (key, call, False), self.budget.refresh_s()
            threads.refresh(key, self._compute_sync, arguments, now, self._thread_refreshes, limit_s)
            return copy_out(missed.value)
        try:
            value, _ = threads.share(key, self._compute_sync, (key, call, missed.state != OUTDATED), now)
        except Exception as error:  # noqa: BLE001 - raised again, unless an outdated value replaces it
            return self.replaces(missed, error)
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
        self.budget.computed(self.hit_path.now() - begun_ns)
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
        self.budget.computed(self.hit_path.now() - begun_ns)
        self.store(key, value, erasures, tags, subject)
        return value
