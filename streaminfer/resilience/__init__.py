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
    "resilience.breaker.circuit_breaker": ["CircuitBreaker"],
    "resilience.breaker.events": ["BreakerEvent"],
    "resilience.breaker.statistics": ["BreakerStatistics"],
    "resilience.hedge.hedging": ["Hedge"],
    "resilience.hedge.statistics": ["HedgeStatistics"],
    "resilience.limit.concurrency_limit": ["ConcurrencyLimit"],
    "resilience.limit.statistics": ["LimitStatistics"],
    "resilience.rate.rate_limit": ["Rate", "RateLimit", "RateLimitStatistics"],
    "resilience.retry.retry_budget": ["RetryBudget"],
    "resilience.retry.statistics": ["RetryStatistics"],
}


if not TYPE_CHECKING:  # type checkers know the names from the block above
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
