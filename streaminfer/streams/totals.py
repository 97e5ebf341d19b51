"""Counters of a session: those of its open streams, and sums over its ended streams."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import attrs

from streaminfer._internal.display.unique_name import unique_name
from streaminfer._internal.forking import new_reentrant_lock
from streaminfer.streams.statistics import STREAMS_SHOWN, StreamSessionStatistics, StreamStatistics
from streaminfer.telemetry import LatencyHistogram

if TYPE_CHECKING:
    from streaminfer.streams._live_stream_cy import Stream

__all__ = ["SessionTotals"]


class SessionTotals:
    """Counters of a session.

    Attributes:
        open: streams that have not ended or still have results to deliver, by id.
        ages: ages of results at their delivery.
    """

    def __init__(self) -> None:
        self.open: dict[Hashable, Stream] = {}
        self.ages = LatencyHistogram()
        self._lock = new_reentrant_lock()  # another thread may take a snapshot while streams open and end
        self._ended_streams = 0
        self._ended = StreamStatistics(0, 0, 0, {}, 0, 0)

    def settle(self, stream: "Stream") -> None:
        """Add the counters of an ended stream to the sums."""
        with self._lock:  # so that a concurrent snapshot counts each stream once
            if self.open.get(stream.stream_id) is not stream:
                return
            del self.open[stream.stream_id]
            self._ended_streams += 1
            self._ended = _sum((self._ended, stream.statistics()))

    def snapshot(self) -> StreamSessionStatistics:
        """Return a snapshot of all counters."""
        with self._lock:
            streams = {stream_id: stream.statistics() for stream_id, stream in self.open.copy().items()}
            ended, ended_streams = self._ended, self._ended_streams
        by_dropped = sorted(streams, key=lambda it: -sum(streams[it].dropped.values()))[:STREAMS_SHOWN]
        names: dict[str, Hashable] = {}
        for stream_id in filter(set(by_dropped).__contains__, streams):
            # in the order of opening: a name that moved to another stream as drops change would make counters fall
            names[unique_name(str(stream_id), names)] = stream_id
        name_of = {stream_id: name for name, stream_id in names.items()}
        return StreamSessionStatistics(
            **attrs.asdict(_sum((ended, *streams.values())), recurse=False),
            open_streams=len(streams),
            ended_streams=ended_streams,
            ages=self.ages.copy(),
            streams={name_of[stream_id]: streams[stream_id] for stream_id in by_dropped},
        )


def _sum(parts: Sequence[StreamStatistics]) -> StreamStatistics:
    dropped: Counter[str] = Counter()
    for one in parts:
        dropped.update(one.dropped)
    counts = [(one.received, one.delivered, one.failed, one.waiting, one.in_flight) for one in parts]
    received, delivered, failed, waiting, in_flight = map(sum, zip(*counts, strict=True))
    return StreamStatistics(received, delivered, failed, dict(dropped), waiting, in_flight)
