"""Events of entries that left a cache, and their listeners.

The table notes events; the operation that caused them delivers them afterwards, in its own thread, with no lock held.
One thread at a time delivers, so that listeners get events in order. A thread that finds another one delivering leaves
its events to that one, or to the next operation. Events that a listener causes are delivered when it has returned, in a
few rounds; the rest waits for the next operation, so that a listener that fills the cache again does not loop for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from streaminfer._internal.listener_failures import LISTENER_ERRORS, ListenerFailures
from streaminfer._internal.validation import check_instance

__all__ = ["CacheEvent", "CacheEvents"]

_ROUNDS = 8
_FIELDS = 4  # of one event, as the table notes it


class CacheEvent(NamedTuple):
    """Entry that was evicted, expired or erased.

    Attributes:
        kind: ``"evicted"``, ``"expired"`` or ``"erased"``.
        key: its key.
        value: its value, or the failure that was remembered.
        labels: its subject and its tags; ``None``: it had neither.
    """

    kind: Literal["evicted", "expired", "erased"]
    key: Any
    value: Any
    labels: tuple[str | None, tuple[str, ...]] | None = None


class CacheEvents:
    """Listeners of one cache. Thread-safe."""

    def __init__(self) -> None:
        self.errors = 0
        self._failures = ListenerFailures("streaminfer.caching", "cache")
        self._listeners: tuple[Callable[[CacheEvent], object], ...] = ()
        self._changing = threading.Lock()
        self._telling = threading.Lock()  # acquired without blocking

    def listen(self, cache: Any, listener: Callable[[CacheEvent], object]) -> Callable[[], None]:
        """Deliver every event from now on to ``listener``; return a function that ends that.

        Raises:
            TypeError: not a callable.
        """
        check_instance("listener", listener, callable, "a function of a CacheEvent")
        with self._changing:
            self._listeners = (*self._listeners, listener)
            cache.listening = True

        def stop() -> None:
            with self._changing:
                self._listeners = tuple(other for other in self._listeners if other is not listener)
                cache.listening = bool(self._listeners)

        return stop

    def deliver(self, drain: Callable[[], list[Any]]) -> None:
        """Deliver what was noted, unless another thread does already.

        Args:
            drain: returns kind, key, value and labels in turn; a kind of ``None`` is only freed.
        """
        if not self._telling.acquire(blocking=False):
            return
        try:
            for _ in range(_ROUNDS):
                noted = drain()
                if not noted:
                    return
                for start in range(0, len(noted), _FIELDS):
                    if noted[start] is not None:
                        self._tell(CacheEvent(*noted[start : start + _FIELDS]))
        finally:
            self._telling.release()

    def _tell(self, event: CacheEvent) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except LISTENER_ERRORS as failure:
                self.errors += 1
                self._failures.report(listener, f"an entry that was {event.kind}", failure)
