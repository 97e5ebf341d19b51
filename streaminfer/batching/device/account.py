"""Counters of one model's use of a device."""

from collections.abc import Mapping

import attrs

from streaminfer.batching.device.statistics import DeviceModelStatistics

__all__ = ["Account"]


@attrs.define
class Account:
    """Counters of one model's use of a device; `DeviceModelStatistics` describes each."""

    batches: int = 0
    busy_s: float = 0.0
    waits: int = 0
    longest_wait_s: float = 0.0
    loads: int = 0
    load_s: float = 0.0
    promoted: int = 0

    def statistics(self, slowdowns: Mapping[str, float]) -> DeviceModelStatistics:
        """Return a frozen snapshot.

        Args:
            slowdowns: by other model, how many times as long a batch of this one takes beside it.
        """
        return DeviceModelStatistics(**attrs.asdict(self), slowdowns=slowdowns)
