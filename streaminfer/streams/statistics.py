"""Frozen snapshots of a session."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer.telemetry import LatencyHistogram

__all__ = ["STREAMS_SHOWN", "StreamSessionStatistics", "StreamStatistics"]

STREAMS_SHOWN = 64
"""Maximum number of streams that a snapshot lists, which bounds its size."""


@attrs.frozen(slots=True)
class StreamStatistics(Snapshot):
    """Frames of one stream; ``received`` is the sum of the other counts.

    Attributes:
        received: frames that arrived.
        delivered: results with outputs that the consumer got.
        failed: results with an error that the consumer got.
        dropped: frames without a result, by reason.
        waiting: frames that were not sent yet.
        in_flight: frames that were sent; the consumer does not have their results yet.
    """

    received: int
    delivered: int
    failed: int
    dropped: Mapping[str, int]
    waiting: int
    in_flight: int


@attrs.frozen(slots=True)
class StreamSessionStatistics(StreamStatistics):
    """Frames of all streams of a session, including streams that have ended.

    The reasons in ``dropped`` are ``stale`` (a newer frame replaced it), ``skipped`` (the policy did not select it),
    ``deadline_exceeded`` (it reached its age limit), ``closed`` (its stream was closed) and those of `AdmissionReason`.

    Attributes:
        open_streams: streams that have not ended or still have results to deliver.
        ended_streams: streams that have ended and delivered their results.
        ages: ages of the results with outputs at their delivery.
        streams: statistics of open streams by the text of their id: at most 64, those with the most drops first. If two
            ids have the same text, such as ``1`` and ``"1"``, the stream that opened later gets the suffix ``#2``.
    """

    open_streams: int
    ended_streams: int
    ages: LatencyHistogram
    streams: Mapping[str, StreamStatistics]
