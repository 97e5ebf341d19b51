"""Protocols of objectives, as guards read them."""

from typing import Any, Protocol, runtime_checkable

__all__ = ["Burns", "CountsEvents", "HasThreshold", "is_slo_or_none"]


@runtime_checkable
class Burns(Protocol):
    """Objective with an error budget."""

    def burning(self) -> bool:
        """Return whether the budget burns too fast."""


@runtime_checkable
class HasThreshold(Protocol):
    """Objective for the latency of a request.

    Attributes:
        threshold_s: seconds within which a response is good.
    """

    threshold_s: float


@runtime_checkable
class CountsEvents(Protocol):
    """Objective that counts its events.

    Attributes:
        name: for reports.
        total: events since it was made.
    """

    name: str

    @property
    def total(self) -> int: ...


def is_slo_or_none(value: Any, *, with_threshold: bool = False) -> bool:
    """Return whether ``value`` is ``None`` or has the attributes of an `SLO` that guards read; loads no class."""
    if value is None:
        return True
    return isinstance(value, Burns) and (not with_threshold or isinstance(value, HasThreshold))
