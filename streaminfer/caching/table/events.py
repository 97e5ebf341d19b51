"""Events of a cache.

The table notes entries that leave; the operation that caused it delivers them afterwards, in its own thread, when the
table is whole. Events that a listener itself causes are delivered in a few rounds; the rest waits for the next
operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from streaminfer._internal.listeners import Listeners

__all__ = ["CacheEvent", "CacheEvents"]

_EVENT_FIELDS = 4
"""Places of one event in the table's list."""


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
    """Delivers the events of one cache. Thread-safe."""

    def __init__(self) -> None:
        # the log gets the kind only: keys and values can be personal data
        self._listeners: Listeners[CacheEvent] = Listeners(
            "streaminfer.caching",
            "cache",
            "a function of a CacheEvent",
            lambda event: f"an entry that was {event.kind}",
        )

    @property
    def errors(self) -> int:
        """Exceptions of listeners."""
        return self._listeners.errors

    def listen(self, cache: Any, listener: Callable[[CacheEvent], object]) -> Callable[[], None]:
        """Add a listener for all later events; the result removes it.

        Raises:
            TypeError: not a callable.
        """

        def set_listening(listening: bool) -> None:
            cache.listening = listening

        return self._listeners.add(listener, set_listening)

    def deliver(self, drain: Callable[[], list[Any]]) -> None:
        """Tell the noted events, unless another thread does.

        Args:
            drain: returns kind, key, value and labels of each event in turn; one without a kind is only freed.
        """
        self._listeners.deliver(_take, drain)


def _take(drain: Callable[[], list[Any]]) -> Sequence[CacheEvent]:
    noted = drain()
    if len(noted) <= _EVENT_FIELDS:  # one event or none, as a rule
        return (CacheEvent(*noted),) if noted and noted[0] is not None else ()
    return [
        CacheEvent(*noted[place : place + _EVENT_FIELDS])
        for place in range(0, len(noted), _EVENT_FIELDS)
        if noted[place] is not None
    ]
