"""Live streams: cameras and microphones through one service, in order, with state, never stale."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.streams.frame import Frame
    from streaminfer.streams.state.backend import StatefulBackend
    from streaminfer.streams.state.layout import Growing
    from streaminfer.streams.state.statistics import StatefulStatistics

__all__ = ["Frame", "Growing", "StatefulBackend", "StatefulStatistics"]

_HOMES = {
    "Frame": "streams.frame",
    "Growing": "streams.state.layout",
    "StatefulStatistics": "streams.state.statistics",
    "StatefulBackend": "streams.state.backend",
}

if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
