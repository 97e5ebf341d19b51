"""What the layers of a cache, which look things up and store them, need of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from streaminfer.caching.tiers.lookup import TierHit
    from streaminfer.caching.tiers.tier_set import TierSet
    from streaminfer.caching.wrapping.freshness import Freshness

__all__ = ["Table"]


class Table(Protocol):
    """What a layer needs of a cache: an ``EdgeTable`` with the checked methods of `EdgeCache`.

    Attributes:
        clock: returns monotonic nanoseconds; ``None``: the monotonic clock.
        erasures: a number that grows with whatever is erased, deleted or cleared.
        revalidate_ns: for how much of its stale time a value is given while it is refreshed.
        freshness: its settings of time.
        negative_ttl_s: seconds for which an error is kept; 0: errors are not kept.
        tiers: slower caches behind it; ``None``: none.
    """

    clock: Callable[[], int] | None
    erasures: int
    freshness: Freshness
    revalidate_ns: int
    tiers: TierSet | None

    @property
    def negative_ttl_s(self) -> float: ...  # noqa: D102

    def put(
        self, key: Any, value: Any, *, ttl_s: float | None = None, tags: Any = (), subject: str | None = None
    ) -> bool:
        """Keeps a value; whether it did."""
        ...

    def put_negative(self, key: Any, error: Any, *, tags: Any = (), subject: str | None = None) -> bool:
        """Keeps an error; whether it did."""
        ...

    def pop(self, key: Any, default: Any = ..., /) -> Any:
        """Removes a value."""
        ...

    def lasts_ns(self, ttl_s: float | None, tags: Iterable[str]) -> int:
        """How long a value is fresh."""
        ...

    def erased_since(self, key: Any, erasures: int) -> bool:
        """Whether a key may have been erased or deleted since ``erasures`` was that."""
        ...

    def promote(self, key: Any, found: TierHit, erasures: int) -> None:
        """Keeps what a tier had."""
        ...
