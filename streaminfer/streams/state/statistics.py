"""Statistics of a `StatefulBackend`."""

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["StatefulStatistics"]


@attrs.frozen
class StatefulStatistics(Snapshot):
    """Counters of a `StatefulBackend` since it was made; a snapshot.

    Attributes:
        streams: streams with state, or with a step in flight.
        rows: rows of the arena in use.
        bytes: bytes of all states, and of the outputs that are kept as the next inputs.
        gathers: batches with states that were gathered.
        sticky_batches: batches of the same streams as an earlier batch, which read the outputs of that batch.
        copied_rows: states that were copied, into a batch or to the arena.
        expired: streams that were forgotten after ``idle_ttl_s`` without a request.
        rejected: rows without a stream, and rows and imported states beyond ``max_streams``.
        restarts: how often all streams started again because the model was replaced.
    """

    streams: int
    rows: int
    bytes: int
    gathers: int
    sticky_batches: int
    copied_rows: int
    expired: int
    rejected: int
    restarts: int
