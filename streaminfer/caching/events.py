"""Events of entries that left a cache, and their listeners.

The table notes events; the operation that caused them delivers them afterwards, in its own thread, with no lock held.
One thread at a time delivers, so that listeners get events in order. A thread that finds another one delivering leaves
its events to that one, or to the next operation. Events that a listener causes are delivered when it has returned, in a
few rounds; the rest waits for the next operation, so that a listener that fills the cache again does not loop for ever.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from streaminfer._internal.listeners import Listeners

__all__ = ["CacheEvent", "cache_listeners", "take_events"]


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


def cache_listeners() -> Listeners[CacheEvent]:
    """Return what delivers the events of one cache."""
    # the log gets the kind only: keys and values can be personal data
    what = "a function of a CacheEvent"
    return Listeners("streaminfer.caching", "cache", what, lambda event: f"an entry that was {event.kind}")


def take_events(drain: Callable[[], list[Any]]) -> Sequence[CacheEvent]:
    """Return what was noted; ``drain`` returns kind, key, value and labels in turn, and a kind of ``None`` is freed."""
    noted = iter(drain())
    return [CacheEvent(*event) for event in zip(noted, noted, noted, noted, strict=True) if event[0] is not None]
