"""Live streams: sends cameras and microphones through one service, in order, with state and an age limit."""

from typing import TYPE_CHECKING

from streaminfer._internal.loading.lazy import lazy_attributes

if TYPE_CHECKING:
    from streaminfer.streams._stream_cy import StreamResult
    from streaminfer.streams.blocking_session import BlockingStreamSession
    from streaminfer.streams.frame import Frame
    from streaminfer.streams.policies import Block, EveryNth, FramePolicy, FrameSelector, LatestOnly, TargetRate
    from streaminfer.streams.segments import Segment, Segments
    from streaminfer.streams.session import StreamResults, StreamSession
    from streaminfer.streams.sources.media import AudioSource, VideoSource
    from streaminfer.streams.sources.messages import audio_from_messages, video_from_messages
    from streaminfer.streams.sources.reconnect import Reconnect
    from streaminfer.streams.sources.source import Source, SourceStatistics
    from streaminfer.streams.sources.track import from_track
    from streaminfer.streams.state.backend import StatefulBackend
    from streaminfer.streams.state.layout import Growing
    from streaminfer.streams.state.statistics import StatefulStatistics
    from streaminfer.streams.statistics import StreamSessionStatistics, StreamStatistics

__all__ = [
    "AudioSource",
    "Block",
    "BlockingStreamSession",
    "EveryNth",
    "Frame",
    "FramePolicy",
    "FrameSelector",
    "Growing",
    "LatestOnly",
    "Reconnect",
    "Segment",
    "Segments",
    "Source",
    "SourceStatistics",
    "StatefulBackend",
    "StatefulStatistics",
    "StreamResult",
    "StreamResults",
    "StreamSession",
    "StreamSessionStatistics",
    "StreamStatistics",
    "TargetRate",
    "VideoSource",
    "audio_from_messages",
    "from_track",
    "video_from_messages",
]

_HOMES = {
    "streams._stream_cy": ["StreamResult"],
    "streams.blocking_session": ["BlockingStreamSession"],
    "streams.frame": ["Frame"],
    "streams.policies": ["Block", "EveryNth", "FramePolicy", "FrameSelector", "LatestOnly", "TargetRate"],
    "streams.segments": ["Segment", "Segments"],
    "streams.session": ["StreamResults", "StreamSession"],
    "streams.sources.media": ["AudioSource", "VideoSource"],
    "streams.sources.messages": ["audio_from_messages", "video_from_messages"],
    "streams.sources.reconnect": ["Reconnect"],
    "streams.sources.source": ["Source", "SourceStatistics"],
    "streams.sources.track": ["from_track"],
    "streams.state.backend": ["StatefulBackend"],
    "streams.state.layout": ["Growing"],
    "streams.state.statistics": ["StatefulStatistics"],
    "streams.statistics": ["StreamSessionStatistics", "StreamStatistics"],
}

if not TYPE_CHECKING:  # type checkers know the names from the block above, and reject others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
