"""Statistics of a `StatefulBackend`."""

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["StatefulStatistics"]


@attrs.frozen
class StatefulStatistics(Snapshot):
    """Counters of a `StatefulBackend` since it was made; a snapshot.

    Attributes:
        streams: that have state, or a step in flight.
        rows: of the arena, in use.
        bytes: of all states, and of the outputs that are kept as the next inputs.
        gathers: batches whose states were gathered.
        sticky_batches: batches of the same streams as an earlier one, whose outputs they read.
        copied_rows: states that were copied, into a batch or to the arena.
        expired: streams that were idle for ``idle_ttl_s``.
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
