"""Number of requests that keep several services busy at once."""

from collections.abc import Iterable
from typing import Any

from streaminfer.protocols import adapt

__all__ = ["full_load_of_all", "spread_load_of_all"]


def full_load_of_all(services: Iterable[Any]) -> int | None:
    """Return how many requests keep all workers of all services busy with full batches; ``None``: one does not know.

    Args:
        services: batchers, or layers around them. Requests that a router passes on to later routes count too.
    """
    loads: list[Any] = []
    for offered in (adapt(service).capabilities() for service in services):
        loads.append(None if offered.full_load is None else offered.full_load())
        if offered.spare_load is not None:
            loads.append(offered.spare_load())
    return None if None in loads else sum(loads)


def spread_load_of_all(services: Iterable[Any]) -> int:
    """Return how many requests keep the workers of those services busy that report their load.

    Args:
        services: services among which requests are spread.
    """
    loads = (it.full_load or it.spread_load for it in (adapt(service).capabilities() for service in services))
    return sum(load() for load in loads if load is not None)
