"""What keeps a broken or overloaded model from taking its callers with it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streaminfer.resilience.breaker_events import BreakerEvent
    from streaminfer.resilience.breaker_statistics import BreakerStatistics
    from streaminfer.resilience.circuit_breaker import CircuitBreaker
    from streaminfer.resilience.concurrency_limit import ConcurrencyLimit
    from streaminfer.resilience.hedge import Hedge
    from streaminfer.resilience.hedge_statistics import HedgeStatistics
    from streaminfer.resilience.limit_statistics import LimitStatistics
    from streaminfer.resilience.rate.rate_limit import Rate, RateLimit, RateLimitStatistics
    from streaminfer.resilience.retry import RetryBudget
    from streaminfer.resilience.retry_statistics import RetryStatistics

__all__ = [
    "BreakerEvent",
    "BreakerStatistics",
    "CircuitBreaker",
    "ConcurrencyLimit",
    "Hedge",
    "HedgeStatistics",
    "LimitStatistics",
    "Rate",
    "RateLimit",
    "RateLimitStatistics",
    "RetryBudget",
    "RetryStatistics",
]

_HOMES = {
    "BreakerEvent": "breaker_events",
    "BreakerStatistics": "breaker_statistics",
    "CircuitBreaker": "circuit_breaker",
    "ConcurrencyLimit": "concurrency_limit",
    "Hedge": "hedge",
    "HedgeStatistics": "hedge_statistics",
    "LimitStatistics": "limit_statistics",
    "Rate": "rate.rate_limit",
    "RateLimit": "rate.rate_limit",
    "RateLimitStatistics": "rate.rate_limit",
    "RetryBudget": "retry",
    "RetryStatistics": "retry_statistics",
}
"""Who uses one primitive does not load the others."""


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
