"""Live streams: cameras and microphones through one service, in order, with state, never stale."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.streams._stream_cy import StreamResult
    from streaminfer.streams.blocking_session import BlockingStreamSession
    from streaminfer.streams.frame import Frame
    from streaminfer.streams.policies import Block, EveryNth, FramePolicy, FrameSelector, LatestOnly, TargetRate
    from streaminfer.streams.segments import Segment, Segments
    from streaminfer.streams.session import StreamResults, StreamSession
    from streaminfer.streams.state.backend import StatefulBackend
    from streaminfer.streams.statistics import StreamSessionStatistics, StreamStatistics

__all__ = [
    "Block",
    "BlockingStreamSession",
    "EveryNth",
    "Frame",
    "FramePolicy",
    "FrameSelector",
    "LatestOnly",
    "Segment",
    "Segments",
    "StatefulBackend",
    "StreamResult",
    "StreamResults",
    "StreamSession",
    "StreamSessionStatistics",
    "StreamStatistics",
    "TargetRate",
]

_HOMES = {
    "Block": "streams.policies",
    "BlockingStreamSession": "streams.blocking_session",
    "EveryNth": "streams.policies",
    "Frame": "streams.frame",
    "FramePolicy": "streams.policies",
    "FrameSelector": "streams.policies",
    "LatestOnly": "streams.policies",
    "Segment": "streams.segments",
    "Segments": "streams.segments",
    "StatefulBackend": "streams.state.backend",
    "StreamResult": "streams._stream_cy",
    "StreamResults": "streams.session",
    "StreamSession": "streams.session",
    "StreamSessionStatistics": "streams.statistics",
    "StreamStatistics": "streams.statistics",
    "TargetRate": "streams.policies",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
