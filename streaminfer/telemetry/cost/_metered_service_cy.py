"""Service wrapper through which a `CostMeter` counts every response.

The module is compiled, because it runs twice per request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streaminfer._internal.listeners import LISTENER_ERRORS
from streaminfer._runtime.batch_observer import BatchWork
from streaminfer.sync_layer import SyncService

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streaminfer.protocols import Clock
    from streaminfer.request import Request, Response

__all__ = ["MeteredService"]

_ONE_ROW = BatchWork()


class MeteredService(SyncService):
    """Wrapper of a service that counts its responses for a `CostMeter`.

    Args:
        meter: the `CostMeter` that made this object.
        inner: the service.
        own: observer that charges each call as a batch of one; ``None`` if a batcher is inside.
    """

    sees_invalid = True

    def __init__(self, meter: Any, inner: Any, observer: Any) -> None:
        super().__init__(inner, meter)
        self._meter = meter
        self._observer = observer
        self._fail = meter.ledger.fail
        self._respond = meter.ledger.respond

    @property
    def clock(self) -> Clock:
        """Clock of deadlines."""
        clock: Clock = self._meter.request_clock
        return clock

    @property
    def left_to_owner(self) -> Sequence[Any]:
        """The service."""
        return (self.inner,)

    async def start(self) -> None:
        """Open the bill, and watch batchers that were added since."""
        self._meter.watch(self.inner)
        self._meter.open()

    async def stop(self, *, drain: bool = True) -> None:  # noqa: ARG002 - the inner service stops later
        """Close the bill."""
        self._meter.close()

    def enter(self, request: Request, now_ns: int) -> Any:
        """Begin a batch of one, if no batcher is inside."""
        return None if self._observer is None else self._observer.begin([request], now_ns)

    def exit(self, request: Request, token: Any, outcome: Response | BaseException, now_ns: int) -> None:
        """Count the response, or the failure."""
        try:
            if token is not None:
                self._observer.end(token, _ONE_ROW, now_ns)
            if isinstance(outcome, BaseException):
                self._fail()
            else:
                self._respond(request, outcome, now_ns, self._observer is None)
        except LISTENER_ERRORS as failure:
            self._meter.failures.report(self._meter, "a response", failure)
