"""Protocol of a `Stack` for the modules that it uses, so that they need not import it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from streaminfer.protocols import Admission, Clock
from streaminfer.request import CallSettings, MapOptions, MapSettings, Request, Response

if TYPE_CHECKING:
    from streaminfer._stack.statistics import StackStatistics

__all__ = ["ServedStack"]


class ServedStack(Protocol):
    """`Stack` as its runs, its queue of callers and its blocking facade use it."""

    clock: Clock

    async def __call__(self, inputs: Any, **settings: Unpack[CallSettings]) -> Any:
        """Send one request and return its outputs."""

    async def call(self, request: Request, *, timeout_s: float | None = None) -> Response:
        """Send one request and return its response."""

    async def map(self, inputs: Iterable[Any], **options: Unpack[MapOptions]) -> list[Any]:
        """Send many requests and return their outputs in order."""

    async def rows(self, inputs: Any, **settings: Unpack[MapSettings]) -> Any:
        """Send a request for each row and return the joined outputs."""

    def admission(self, request: Request, now_ns: int) -> Admission:
        """Return whether the stack would accept a request now; changes nothing."""

    async def start(self) -> None:
        """Start the layers."""

    async def stop(self, *, drain: bool = True, timeout_s: float | None = None) -> None:
        """Stop the layers."""

    async def load_kernels(self) -> None:
        """Load the kernels of the layers."""

    def statistics(self) -> StackStatistics:
        """Return a frozen snapshot."""
