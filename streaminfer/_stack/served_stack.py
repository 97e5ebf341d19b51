"""What the parts below `Stack` need of one, so that they need not import it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from streaminfer.protocols import Admission, Clock
from streaminfer.request import CallSettings, MapSettings, Request, Response

if TYPE_CHECKING:
    from streaminfer._stack.statistics import StackStatistics

__all__ = ["ServedStack"]


class ServedStack(Protocol):
    """A `Stack`, as its runs, its queue of callers and its blocking facade use it."""

    clock: Clock

    async def __call__(self, inputs: Any, **settings: Unpack[CallSettings]) -> Any:
        """Answers one request."""

    async def call(self, request: Request, *, timeout_s: float | None = None) -> Response:
        """Answers one request, with all that is known about the answer."""

    async def map(
        self,
        inputs: Iterable[Any],
        *,
        concurrency: int | None = None,
        return_exceptions: bool = False,
        **settings: Unpack[MapSettings],
    ) -> list[Any]:
        """Answers many requests, in their order."""

    async def rows(self, inputs: Any, **settings: Unpack[MapSettings]) -> Any:
        """Answers a request of several rows."""

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Whether a request would be accepted now; changes nothing."""

    async def start(self) -> None:
        """Starts its layers."""

    async def stop(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Stops them."""

    async def load_kernels(self) -> None:
        """Loads what its layers compute with."""

    def statistics(self) -> StackStatistics:
        """A frozen snapshot."""
