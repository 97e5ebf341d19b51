"""Adapters from batched functions to services, and from cached services back to functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

from streaminfer._internal.signatures import signature_of
from streaminfer.protocols import Capabilities, Node
from streaminfer.request import Request, Response, deadline_after, time_left_s

if TYPE_CHECKING:
    from streaminfer.caching.wrapping.cached_service import CachedService

__all__ = ["FunctionAsService", "as_function", "is_batched"]

_REQUEST_FIELDS = {"timeout_s", "priority", "stream_id", "tenant", "key"}


def is_batched(function: Any) -> bool:
    """Return whether a function takes the fields of a request as keywords, as the functions of a batcher do."""
    try:
        parameters = signature_of(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return {each.name for each in parameters if each.kind is each.KEYWORD_ONLY} >= _REQUEST_FIELDS


class FunctionAsService(Node):
    """Service over a batched function."""

    def __init__(self, function: Callable[..., Any], now: Callable[[], int]) -> None:
        self._function = function
        self._now = now

    def capabilities(self) -> Capabilities:
        """Return capabilities: each request ends at its deadline."""
        return Capabilities(enforces_deadline=True)

    async def call(self, request: Request) -> Response:
        """Call the function with the fields of a request."""
        timeout_s = None
        if request.deadline_ns is not None:
            left_s = time_left_s(request.deadline_ns, self._now())
            timeout_s = math.inf if left_s is None else max(left_s, 0.0)
        outputs = await self._function(
            request.inputs,
            timeout_s=timeout_s,
            priority=request.priority,
            stream_id=request.stream_id,
            tenant=request.tenant,
            key=request.key,
        )
        return Response(outputs)


def as_function(service: CachedService, function: Callable[..., Any]) -> Any:
    """Return a cached service as a function with the parameters of the wrapped function.

    Args:
        service: the cached service.
        function: the function that it wraps; the keywords have the meaning that they have for a `Stack`.
    """

    @wraps(function)
    async def cached(
        x: Any,
        *,
        timeout_s: float | None = None,
        priority: int = 0,
        stream_id: Any = None,
        tenant: str | None = None,
        key: Any = None,
    ) -> Any:
        deadline_ns = None if timeout_s is None else deadline_after(service.now(), timeout_s)
        request = Request(x, deadline_ns=deadline_ns, priority=priority, stream_id=stream_id, tenant=tenant, key=key)
        return (await service.call(request)).outputs

    def key_of(x: Any, *, tenant: str | None = None, key: Any = None) -> bytes:
        return service.key_of(Request(x, tenant=tenant, key=key))

    cached.key_of = key_of  # type: ignore[attr-defined]
    return cached
