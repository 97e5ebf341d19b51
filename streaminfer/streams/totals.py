"""Counters of a session: those of its open streams, and the sums of the ones that have ended."""

from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING

from streaminfer._internal.display.unique_name import unique_name
from streaminfer.streams.statistics import STREAMS_SHOWN, StreamSessionStatistics, StreamStatistics
from streaminfer.telemetry import LatencyHistogram

if TYPE_CHECKING:
    from streaminfer.streams._live_stream_cy import Stream

__all__ = ["SessionTotals"]


class SessionTotals:
    """Counters of a session.

    Attributes:
        open: streams that have not ended, or whose results were not all delivered, by id.
        ages: of results at their delivery.
    """

    def __init__(self) -> None:
        self.open: dict[Hashable, Stream] = {}
        self.ages = LatencyHistogram()
        self._ended_streams = 0
        self._received = 0
        self._delivered = 0
        self._failed = 0
        self._dropped: Counter[str] = Counter()

    def settle(self, stream: "Stream") -> None:
        """Take over the counters of a stream that has ended."""
        if self.open.get(stream.stream_id) is not stream:
            return
        del self.open[stream.stream_id]
        state = stream.state
        self._ended_streams += 1
        self._received += state.received
        self._delivered += state.delivered
        self._failed += state.failed
        self._dropped.update(state.dropped)

    def forget_open(self) -> None:
        """Take over the counters of streams that a closed event loop left behind."""
        for stream in list(self.open.values()):
            stream.forget()

    def snapshot(self) -> StreamSessionStatistics:
        """Return them as a record."""
        streams = {stream_id: stream.statistics() for stream_id, stream in self.open.items()}
        dropped = Counter(self._dropped)
        for one in streams.values():
            dropped.update(one.dropped)
        shown: dict[str, StreamStatistics] = {}
        for stream_id in sorted(streams, key=lambda it: -sum(streams[it].dropped.values()))[:STREAMS_SHOWN]:
            shown[unique_name(str(stream_id), shown)] = streams[stream_id]
        return StreamSessionStatistics(
            received=self._received + sum(one.received for one in streams.values()),
            delivered=self._delivered + sum(one.delivered for one in streams.values()),
            failed=self._failed + sum(one.failed for one in streams.values()),
            dropped=dict(dropped),
            waiting=sum(one.waiting for one in streams.values()),
            in_flight=sum(one.in_flight for one in streams.values()),
            open_streams=len(streams),
            ended_streams=self._ended_streams,
            ages=self.ages.copy(),
            streams=shown,
        )
