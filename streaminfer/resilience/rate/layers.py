"""The rate limit around a service or a function."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from streaminfer._internal.validation import expected
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Wrapper, adapt
from streaminfer.request import Request, Response
from streaminfer.resilience._targets import kind_of

if TYPE_CHECKING:
    from streaminfer.resilience.rate.rate_limit import RateLimit

__all__ = ["RateLimitedService", "wrap_with_rate"]


def wrap_with_rate(limit: RateLimit, inner: Any, by: Callable[..., Hashable] | None) -> Any:
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


class RateLimitedService(Wrapper):
    """A service that takes so many requests a second of each tenant.

    Attributes:
        inner: the limited service.
        limit: the `RateLimit`.
        name: of the limited service.
    """

    def __init__(self, limit: RateLimit, inner: Any, by: Callable[..., Hashable] | None) -> None:
        super().__init__(inner, limit)
        self.limit = limit
        self._call: Callable[[Request], Any] = inner.call
        self._by = _tenant if by is None else by
        self._admission = adapt(inner).capabilities().admission

    def capabilities(self) -> Capabilities:
        """What the inner service offers, with the limit's answer to `admission`."""
        return super().capabilities()._replace(admission=self.admission)

    async def call(self, request: Request) -> Response:
        """Answer the request, where its tenant has not sent too many.

        Raises:
            Overloaded: it has.
        """
        self.limit.acquire(self._by(request))
        response: Response = await self._call(request)
        return response

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Say whether the request would be admitted now, here and further in; changes nothing."""
        wait_ns = self.limit._buckets.wait_ns(self._by(request), now_ns)
        if wait_ns:
            return Admission(False, AdmissionReason.RATE_LIMIT, wait_ns / 1e9)
        return Admission(True) if self._admission is None else self._admission(request, now_ns)

    def __repr__(self) -> str:
        return f"{self.limit!r} in front of {self.inner!r}"


def _tenant(request: Request) -> str | None:
    return request.tenant


def _no_tenant(*_: Any, **__: Any) -> None:
    """Return the tenant of all calls of a function that names none."""


def _limit_async(limit: RateLimit, function: Callable[..., Any], by: Callable[..., Hashable] | None) -> Any:
    tenant_of = by or _no_tenant

    @functools.wraps(function)
    async def limited(*args: Any, **kwargs: Any) -> Any:
        limit.acquire(tenant_of(*args, **kwargs))
        return await function(*args, **kwargs)

    return limited


def _limit_sync(limit: RateLimit, function: Callable[..., Any], by: Callable[..., Hashable] | None) -> Any:
    tenant_of = by or _no_tenant

    @functools.wraps(function)
    def limited(*args: Any, **kwargs: Any) -> Any:
        limit.acquire(tenant_of(*args, **kwargs))
        return function(*args, **kwargs)

    return limited
