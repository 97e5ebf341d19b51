"""What left a cache, told to whoever listens: with no lock held, after the table is whole, and never its undoing.

The table notes what goes; the operation that caused it tells it afterwards, in its own thread. One thread at a time
tells, so that listeners hear events in order; who finds another one telling leaves its events to that one, or to the
next operation, and waits for nobody. What a listener itself causes is told when it has returned, in a few rounds; the
rest waits for the next operation, so that a listener which fills the cache again does not go round for ever.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from streaminfer._internal.listener_failures import LISTENER_ERRORS, ListenerFailures
from streaminfer._internal.validation import check_instance

__all__ = ["CacheEvent", "CacheEvents"]

_ROUNDS = 8
_PLACES = 4  # of one event, as the table notes it


class CacheEvent(NamedTuple):
    """An entry that left a cache by itself or by erasure.

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
    """The listeners of one cache. Thread-safe."""

    def __init__(self) -> None:
        self.errors = 0
        self._failures = ListenerFailures("streaminfer.caching", "cache")
        self._listeners: tuple[Callable[[CacheEvent], object], ...] = ()
        self._changing = threading.Lock()
        self._telling = threading.Lock()  # never waited for

    def listen(self, cache: Any, listener: Callable[[CacheEvent], object]) -> Callable[[], None]:
        """Tells every event from now on to ``listener``; what it returns ends that.

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
        """Tells what was noted, unless somebody does already.

        Args:
            drain: gives kind, key, value and labels in turn; a kind of ``None`` is only freed.
        """
        if not self._telling.acquire(blocking=False):
            return
        try:
            for _ in range(_ROUNDS):
                noted = drain()
                if not noted:
                    return
                for place in range(0, len(noted), _PLACES):
                    if noted[place] is not None:
                        self._tell(CacheEvent(*noted[place : place + _PLACES]))
        finally:
            self._telling.release()

    def _tell(self, event: CacheEvent) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except LISTENER_ERRORS as failure:
                self.errors += 1
                self._failures.report(listener, f"an entry that was {event.kind}", failure)
