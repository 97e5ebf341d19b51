"""Frozen snapshots of a session."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer.telemetry import LatencyHistogram

__all__ = ["STREAMS_SHOWN", "StreamSessionStatistics", "StreamStatistics"]

STREAMS_SHOWN = 64
"""Most streams that a snapshot lists, so that its size has a bound."""


@attrs.frozen(slots=True)
class StreamStatistics(Snapshot):
    """Frames of one stream; ``received`` is the sum of the others.

    Attributes:
        received: frames that arrived.
        delivered: results with outputs that the consumer got.
        failed: results with an error that the consumer got.
        dropped: frames without a result, by reason.
        waiting: frames that were not sent yet.
        in_flight: frames that were sent, and whose result the consumer has not got yet.
    """

    received: int
    delivered: int
    failed: int
    dropped: Mapping[str, int]
    waiting: int
    in_flight: int


@attrs.frozen(slots=True)
class StreamSessionStatistics(StreamStatistics):
    """Frames of all streams of a session, those that have ended included.

    The reasons in ``dropped`` are ``stale`` (a newer frame came first), ``skipped`` (the policy leaves it out),
    ``deadline_exceeded`` (it reached its age limit), ``closed`` (its stream was closed) and those of `AdmissionReason`.

    Attributes:
        open_streams: streams that have not ended, or whose last results were not delivered.
        ended_streams: the others.
        ages: ages of the results with outputs at their delivery.
        streams: open streams by the text of their id: at most 64, those with the most drops first. Of two ids with the
            same text, such as ``1`` and ``"1"``, the later one has ``#2`` behind it.
    """

    open_streams: int
    ended_streams: int
    ages: LatencyHistogram
    streams: Mapping[str, StreamStatistics]
