"""Protocols of objectives, as guards read them."""

from typing import Protocol, runtime_checkable

__all__ = ["Burns", "BurnsAtThreshold", "CountsEvents"]


@runtime_checkable
class Burns(Protocol):
    """Objective with an error budget."""

    def burning(self) -> bool:
        """Return whether the budget burns too fast."""


@runtime_checkable
class BurnsAtThreshold(Burns, Protocol):
    """Objective for the latency of a request, with an error budget.

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
