"""A batcher around a batch function: an async function of single requests."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

from streaminfer._runtime.closing import close_unread
from streaminfer.request import Request, check_priority, deadline_after

if TYPE_CHECKING:
    from streaminfer.batching.batched_service import BatchedService

__all__ = ["BatchedFunction", "as_function"]


class BatchedFunction(Protocol):
    """Async function of single requests that :meth:`AdaptiveBatcher.wrap` makes of a batch function."""

    async def __call__(
        self,
        x: Any,
        *,
        timeout_s: float | None = None,
        priority: int = 0,
        stream_id: Hashable = None,
        tenant: str | None = None,
        key: Hashable = None,
    ) -> Any:
        """Run one request as a row of a batch."""


def as_function(service: BatchedService, function: Callable[..., Any]) -> BatchedFunction:
    """Return an async function that sends requests to the service of a batch function.

    Args:
        service: service of the batcher.
        function: the wrapped function.
    """
    submit = service.submit
    abandon = service.abandon

    async def batched(
        x: Any,
        *,
        timeout_s: float | None = None,
        priority: int = 0,
        stream_id: Hashable = None,
        tenant: str | None = None,  # noqa: ARG001 - a function sees inputs alone; layers around it read these two
        key: Hashable = None,  # noqa: ARG001
    ) -> Any:
        deadline_ns = None
        if timeout_s is not None:
            deadline_ns = deadline_after(service.clock(), timeout_s)
        if priority != 0:
            check_priority(priority)
        # the queue reads the stream from the request
        ticket = submit(None if stream_id is None else Request(x, stream_id=stream_id), x, deadline_ns, priority)
        future = ticket.future
        try:
            return await future
        except BaseException:
            close_unread(future)
            del future  # it holds the error, whose traceback holds this frame, and thus the inputs
            abandon(ticket)
            raise

    functools.update_wrapper(batched, function, ("__module__", "__name__", "__qualname__", "__doc__"), updated=())
    del batched.__wrapped__  # type: ignore[attr-defined] # neither its signature nor its annotations are this one's
    return batched
