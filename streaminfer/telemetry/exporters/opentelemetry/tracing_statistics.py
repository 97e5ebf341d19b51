"""Statistics of a `Tracing` layer."""

import attrs

from streaminfer._internal.snapshot import Snapshot
from streaminfer.telemetry.exporters.histogram_points import Exemplar

__all__ = ["TracingStatistics"]


@attrs.frozen(kw_only=True)
class TracingStatistics(Snapshot):
    """Spans of a `Tracing` layer since its creation.

    Attributes:
        requests: spans of requests.
        batches: spans of batches.
        exemplars: the latest traced request with a response of each classic bucket.
    """

    requests: int
    batches: int
    exemplars: tuple[Exemplar, ...]
