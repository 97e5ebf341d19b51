"""The rate limit around a service or a function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any, Protocol

from streaminfer._internal.validation import expected
from streaminfer._runtime.wrapped_kind import kind_of
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Clock, adapt
from streaminfer.request import Request, Response
from streaminfer.sync_layer import SyncService

__all__ = ["RateLimitedService", "TenantLimit", "wrap_with_rate"]


class TenantLimit(Protocol):
    """The part of a `RateLimit` that a wrapper uses."""

    _clock: Clock

    def acquire(self, tenant: Hashable) -> None:
        """Admit one request of a tenant, or raise `Overloaded`."""

    def acquire_at(self, tenant: Hashable, now_ns: int) -> None:
        """Do the same at a given instant."""

    def wait_ns(self, tenant: Hashable, now_ns: int) -> int:
        """Return the nanoseconds until the next request of a tenant is admitted; changes nothing."""


def wrap_with_rate(limit: TenantLimit, inner: Any, by: Callable[..., Hashable] | None) -> Any:
    """Return a limited object of the same kind; see ``RateLimit.wrap``.

    Raises:
        TypeError: ``inner`` is neither service nor function.
    """
    kind = kind_of(inner)
    if kind == "service":
        return RateLimitedService(limit, inner, by)
    if kind == "backend":
        what = "a service or a function (a batch has rows of several tenants: the limit stands before the batcher)"
        raise TypeError(expected("inner", what, inner))
    return _limit_async(limit, inner, by) if kind == "async function" else _limit_sync(limit, inner, by)


class RateLimitedService(SyncService):
    """A service that takes so many requests a second of each tenant.

    Attributes:
        inner: the limited service.
        limit: the `RateLimit`.
        name: of the limited service.
    """

    def __init__(self, limit: TenantLimit, inner: Any, by: Callable[..., Hashable] | None) -> None:
        super().__init__(inner, limit)
        self.limit = limit
        self._by = _tenant if by is None else by
        self._admission = adapt(inner).capabilities().admission

    def capabilities(self) -> Capabilities:
        """What the inner service offers, with the limit's answer to `admission`."""
        return super().capabilities()._replace(admission=self.admission)

    @property
    def clock(self) -> Clock:
        """Return the clock of the limit."""
        return self.limit._clock

    def enter(self, request: Request, now_ns: int) -> None:
        """Draw from the bucket of the request's tenant.

        Raises:
            Overloaded: it is empty.
        """
        self.limit.acquire_at(self._by(request), now_ns)

    def exit(self, request: Request, token: None, outcome: Response | BaseException, now_ns: int) -> None:
        """Do nothing: what was drawn remains drawn."""

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Say whether the request would be admitted now, here and further in; changes nothing."""
        wait_ns = self.limit.wait_ns(self._by(request), now_ns)
        if wait_ns:
            return Admission(False, AdmissionReason.RATE_LIMIT, wait_ns / 1e9)
        return Admission(True) if self._admission is None else self._admission(request, now_ns)

    def __repr__(self) -> str:
        return f"{self.limit!r} in front of {self.inner!r}"


def _tenant(request: Request) -> str | None:
    return request.tenant


def _no_tenant(*_: Any, **__: Any) -> None:
    """Return the tenant of all calls of a function that names none."""


def _limit_async(limit: TenantLimit, function: Callable[..., Any], by: Callable[..., Hashable] | None) -> Any:
    tenant_of = by or _no_tenant

    @functools.wraps(function)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        limit.acquire(tenant_of(*args, **kwargs))
        return await function(*args, **kwargs)

    return limited


def _limit_sync(limit: TenantLimit, function: Callable[..., Any], by: Callable[..., Hashable] | None) -> Any:
    tenant_of = by or _no_tenant

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        limit.acquire(tenant_of(*args, **kwargs))
        return function(*args, **kwargs)

    return limited
