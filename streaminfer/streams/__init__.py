"""Live streams: cameras and microphones through one service, in order, with state, never stale."""

from typing import TYPE_CHECKING

from streaminfer._internal.lazy import lazy_attributes
from streaminfer.streams.frame import Frame

if TYPE_CHECKING:
    from streaminfer.streams.sources.media import AudioSource, VideoSource
    from streaminfer.streams.sources.messages import audio_from_messages, video_from_messages
    from streaminfer.streams.sources.reconnect import Reconnect
    from streaminfer.streams.sources.source import Source, SourceStatistics
    from streaminfer.streams.sources.track import from_track

__all__ = [
    "AudioSource",
    "Frame",
    "Reconnect",
    "Source",
    "SourceStatistics",
    "VideoSource",
    "audio_from_messages",
    "from_track",
    "video_from_messages",
]

_HOMES = {
    "AudioSource": "streams.sources.media",
    "Reconnect": "streams.sources.reconnect",
    "Source": "streams.sources.source",
    "SourceStatistics": "streams.sources.source",
    "VideoSource": "streams.sources.media",
    "audio_from_messages": "streams.sources.messages",
    "from_track": "streams.sources.track",
    "video_from_messages": "streams.sources.messages",
}


if not TYPE_CHECKING:  # type checkers know the names from the block above, and refuse others
    __getattr__, __dir__ = lazy_attributes(__name__, _HOMES)
