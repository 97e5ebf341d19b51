"""What tiers need of the memory of a cache."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from streaminfer.caching.freshness import Freshness

__all__ = ["CacheTable"]


class CacheTable(Protocol):
    """Memory of a cache, before its tiers.

    Attributes:
        erasures: a number that grows with each erasure and deletion.
        freshness: the settings of time of the cache.
    """

    freshness: Freshness

    @property
    def erasures(self) -> int: ...  # noqa: D102 - see above

    def now(self) -> int:
        """Return the present instant on the cache's clock, monotonic nanoseconds."""
        ...

    def get(self, key: Any, default: Any = None, /) -> Any:
        """Return the fresh value of a key, which counts as a use."""
        ...

    def peek(self, key: Any, default: Any = None, /) -> Any:
        """Return the fresh value of a key; counts as nothing."""
        ...

    def put(self, key: Any, value: Any, ttl_s: float | None, tags: Iterable[str], subject: str | None) -> bool:
        """Store a value; return whether it was stored."""
        ...

    def put_aged(
        self, key: Any, value: Any, ttl_ns: int, age_ns: int, tags: Iterable[str], subject: str | None
    ) -> None:
        """Store a value that was computed ``age_ns`` ago, for ``ttl_ns`` more."""
        ...

    def take(self, key: Any, default: Any, /) -> Any:
        """Remove a fresh entry and return its value."""
        ...

    def delete(self, key: Any, reason: str) -> None:
        """Remove what there is of a key, and count it for the log."""
        ...

    def erased_since(self, key: Any, erasures: int) -> bool:
        """Return whether a key may have been erased or deleted since ``erasures`` had that value."""
        ...

    def check_erasure(self, subject: str | None, tag: str | None) -> None:
        """Raise `ErasureHeld` if a legal hold, or a minimum age, forbids an erasure."""
        ...

    def erase(self, subject: str | None, tag: str | None) -> int:
        """Erase what there is of a subject, or with a tag; return how many entries went."""
        ...
