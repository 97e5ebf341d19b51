"""`RateLimit`: limits the requests per second of each tenant."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Hashable, Mapping
from operator import attrgetter
from typing import Any, overload

import attrs

from streaminfer._internal.locking import thread_safe
from streaminfer._internal.snapshot import Snapshot
from streaminfer._internal.validation import check_count, check_instance, check_number, expected, field_check
from streaminfer._runtime.stack_clock import StackClock
from streaminfer._runtime.wrapped_kind import kind_of
from streaminfer.errors import Overloaded
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Clock, P, R, Service, adapt
from streaminfer.request import Request, Response
from streaminfer.resilience._targets import reject_copy
from streaminfer.resilience.rate.buckets import Bucket, TenantBuckets
from streaminfer.sync_layer import SyncService

__all__ = ["Rate", "RateLimit", "RateLimitStatistics"]

_MAX_PER_S = 1e6  # an interval is whole nanoseconds: a thousand of them are exact to 0.05 %
_MIN_PER_S = 1e-6
_MAX_BURST = 1_000_000
_MAX_TENANTS = 10_000_000
_COUNTED = ("admitted", "rejected", "shared", "tenants")
_Buckets: type[TenantBuckets] = thread_safe(TenantBuckets)


_check_per_s = field_check(
    check_number,
    f"a number of requests a second from {_MIN_PER_S:g} to {_MAX_PER_S:g}",
    lambda it: _MIN_PER_S <= it <= _MAX_PER_S,
)


@attrs.frozen
class Rate:
    """A rate and its burst.

    Args:
        per_s: requests per second in the long run.
        burst: requests at once, after a pause; ``None``: the requests of one second, at least 1.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    per_s: float = attrs.field(validator=_check_per_s)
    burst: int | None = attrs.field(default=None, validator=field_check(check_count, at_most=_MAX_BURST, optional=True))

    def _bucket(self) -> Bucket:
        burst = max(math.floor(self.per_s), 1) if self.burst is None else int(self.burst)
        interval_ns = round(1e9 / float(self.per_s))
        return Bucket(interval_ns, (burst - 1) * interval_ns)


@attrs.frozen(kw_only=True)
class RateLimitStatistics(Snapshot):
    """Counters of a `RateLimit` at one moment.

    Counting rule: each request is in exactly one of ``admitted`` and ``rejected``.

    Attributes:
        name: name of the limit.
        admitted: requests that were admitted.
        rejected: requests that were rejected.
        shared: requests that drew from the bucket that tenants share when there are more than ``max_tenants``.
        tenants: how many tenants without an individual rate have a bucket.
    """

    name: str
    admitted: int
    rejected: int
    shared: int
    tenants: int


class RateLimit(StackClock):
    """Admits at most ``per_s`` requests per second of each tenant and rejects further ones at once with `Overloaded`.

    Wrap a service or a function with :meth:`wrap` or as a decorator, or call :meth:`acquire` and :meth:`try_acquire` by
    hand. All uses of one object share the buckets.

    Args:
        per_s: requests per second of one tenant, in the long run.
        burst: requests of one tenant at once, after a pause; ``None``: the requests of one second, at least 1.
        tenants: tenants with an individual rate: a `Rate`, or ``None`` for no limit. The key ``None`` is for requests
            without a tenant, which share one bucket.
        max_tenants: maximum number of other tenants with separate buckets at the same time; further tenants share one
            bucket. A tenant counts while its bucket is not full.
        name: for reports and errors.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else ``time.monotonic_ns``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Threads: any number may use it at once.

    Example:
        >>> limit = RateLimit(10.0, burst=2)
        >>> [limit.try_acquire("acme"), limit.try_acquire("acme"), limit.try_acquire("acme"), limit.try_acquire("b")]
        [True, True, False, True]
    """

    def __init__(
        self,
        per_s: float,
        *,
        burst: int | None = None,
        tenants: Mapping[str | None, Rate | None] | None = None,
        max_tenants: int = 100_000,
        name: str = "",
        clock: Clock | None = None,
    ) -> None:
        self.rate = Rate(per_s, burst)
        check_instance("tenants", tenants, Mapping | None, "a mapping or None")
        check_instance("name", name, str, "a string")
        check_count("max_tenants", max_tenants, at_most=_MAX_TENANTS)
        own: dict[Hashable, Bucket | None] = {
            tenant: _bucket_of(f"tenants[{tenant!r}]", rate) for tenant, rate in (tenants or {}).items()
        }
        self._buckets = _Buckets(self.rate._bucket(), own, max_tenants)
        self.name = name
        self._clock: Clock = self._accept_clock(clock) or time.monotonic_ns

    @overload
    def wrap(self, inner: Service, *, by: Callable[..., Hashable] | None = None) -> Any: ...
    @overload
    def wrap(self, inner: Callable[P, R], *, by: Callable[..., Hashable] | None = None) -> Callable[P, R]: ...
    def wrap(self, inner: Any, *, by: Callable[..., Hashable] | None = None) -> Any:
        """Wrap a service or a function; also as a decorator, ``@limit``.

        Args:
            inner: a service, or a sync or async function, which stays one.
            by: returns the tenant of a call: a function of the `Request`, or of the wrapped function's arguments.
                ``None``: the tenant of the request; all calls of a function then draw from one bucket.

        Returns:
            The same kind of object. A limited service has ``inner`` and ``admission``.

        Raises:
            TypeError: ``inner`` is neither a service nor a function, or is a generator function.
        """
        check_instance("by", by, lambda it: it is None or callable(it), "a function or None")
        kind = kind_of(inner)
        if kind == "service":
            return RateLimitedService(self, inner, by)
        if kind == "backend":
            expectation = (
                "a service or a function (a batch has rows of several tenants: the limit is around the batcher)"
            )
            raise TypeError(expected("inner", expectation, inner))
        return (_limit_async if kind == "async function" else _limit_sync)(self, inner, by or (lambda *_, **__: None))

    __call__ = wrap

    def try_acquire(self, tenant: Hashable = None) -> bool:
        """Admit one request of a tenant unless it has sent too many; return whether the request is admitted."""
        return self._buckets.take(tenant, self._clock()) == 0

    def acquire(self, tenant: Hashable = None) -> None:
        """Admit one request of a tenant.

        Raises:
            Overloaded: the tenant has sent too many; ``retry_after_s`` says when its next request is admitted.
        """
        self.acquire_at(tenant, self._clock())

    def acquire_at(self, tenant: Hashable, now_ns: int) -> None:
        """Do what :meth:`acquire` does, at a given instant."""
        wait_ns = self._buckets.take(tenant, now_ns)
        if wait_ns:
            name = f"rate limit {self.name!r}" if self.name else "the rate limit"
            owner = "requests without a tenant" if tenant is None else f"tenant {tenant!r}"
            retry_after_s = wait_ns / 1e9
            raise Overloaded(
                f"{name} of {owner} is reached; retry after {retry_after_s:.3f} s", retry_after_s=retry_after_s
            )

    def retry_after_s(self, tenant: Hashable = None) -> float:
        """Return the seconds after which the next request of a tenant is admitted; 0.0: now. Takes nothing."""
        return self.wait_ns(tenant, self._clock()) / 1e9

    def wait_ns(self, tenant: Hashable, now_ns: int) -> int:
        """Return the nanoseconds after which the next request of a tenant is admitted; 0: now. Takes nothing."""
        return int(self._buckets.wait_ns(tenant, now_ns))

    def set_rate(self, tenant: str | None, rate: Rate | None) -> None:
        """Give a tenant an individual rate from now on; ``None``: no limit.

        Requests that the tenant has drawn remain drawn, at most the new burst, and refill at the new rate. A time
        without a limit clears them.

        Raises:
            TypeError: ``rate`` is neither a `Rate` nor ``None``.
        """
        self._buckets.set_bucket(tenant, _bucket_of("rate", rate), self._clock())

    def statistics(self) -> RateLimitStatistics:
        """Return a frozen snapshot."""
        return RateLimitStatistics(name=self.name, **{name: getattr(self._buckets, name) for name in _COUNTED})

    __reduce__ = reject_copy

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"<RateLimit({name}{self.rate.per_s:g} a second per tenant)>"


class RateLimitedService(SyncService):
    """A service with a limit on the requests per second of each tenant.

    Attributes:
        inner: the limited service.
        limit: the `RateLimit`.
        name: name of the limited service.
    """

    def __init__(self, limit: RateLimit, inner: Any, by: Callable[..., Hashable] | None) -> None:
        super().__init__(inner, limit)
        self.limit = limit
        self._by = by or attrgetter("tenant")
        self._admission = adapt(inner).capabilities().admission

    def capabilities(self) -> Capabilities:
        """Return the capabilities of the inner service, with the `admission` of the limit."""
        return super().capabilities()._replace(admission=self.admission)

    @property
    def clock(self) -> Clock:
        """Return the clock of the limit."""
        return self.limit._clock

    def enter(self, request: Request, now_ns: int) -> None:
        """Draw from the bucket of the request's tenant.

        Raises:
            Overloaded: the bucket is empty.
        """
        self.limit.acquire_at(self._by(request), now_ns)

    def exit(self, request: Request, token: None, outcome: Response | BaseException, now_ns: int) -> None:
        """Do nothing: the drawn request remains drawn."""

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Return whether the limit and the inner service would admit the request now; changes nothing."""
        wait_ns = self.limit.wait_ns(self._by(request), now_ns)
        if wait_ns:
            return Admission(False, AdmissionReason.RATE_LIMIT, wait_ns / 1e9)
        return Admission(True) if self._admission is None else self._admission(request, now_ns)


def _limit_async(limit: RateLimit, function: Callable[..., Any], tenant_of: Callable[..., Hashable]) -> Any:
    @functools.wraps(function)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        limit.acquire(tenant_of(*args, **kwargs))
        return await function(*args, **kwargs)

    return limited


def _limit_sync(limit: RateLimit, function: Callable[..., Any], tenant_of: Callable[..., Hashable]) -> Any:
    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        limit.acquire(tenant_of(*args, **kwargs))
        return function(*args, **kwargs)

    return limited


def _bucket_of(argument: str, rate: Rate | None) -> Bucket | None:
    if rate is None:
        return None
    check_instance(argument, rate, Rate, "a Rate or None")
    return rate._bucket()
