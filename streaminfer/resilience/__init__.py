"""Protection of callers from a broken or overloaded model: breaker, limits, retries, hedges."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.resilience.breaker.circuit_breaker import CircuitBreaker
    from streaminfer.resilience.breaker.events import BreakerEvent
    from streaminfer.resilience.breaker.statistics import BreakerStatistics
    from streaminfer.resilience.hedge.hedging import Hedge
    from streaminfer.resilience.hedge.statistics import HedgeStatistics
    from streaminfer.resilience.limit.concurrency_limit import ConcurrencyLimit
    from streaminfer.resilience.limit.statistics import LimitStatistics
    from streaminfer.resilience.rate.rate_limit import Rate, RateLimit, RateLimitStatistics
    from streaminfer.resilience.retry.retry_budget import RetryBudget
    from streaminfer.resilience.retry.statistics import RetryStatistics

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
    "BreakerEvent": "resilience.breaker.events",
    "BreakerStatistics": "resilience.breaker.statistics",
    "CircuitBreaker": "resilience.breaker.circuit_breaker",
    "ConcurrencyLimit": "resilience.limit.concurrency_limit",
    "Hedge": "resilience.hedge.hedging",
    "HedgeStatistics": "resilience.hedge.statistics",
    "LimitStatistics": "resilience.limit.statistics",
    "Rate": "resilience.rate.rate_limit",
    "RateLimit": "resilience.rate.rate_limit",
    "RateLimitStatistics": "resilience.rate.rate_limit",
    "RetryBudget": "resilience.retry.retry_budget",
    "RetryStatistics": "resilience.retry.statistics",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
