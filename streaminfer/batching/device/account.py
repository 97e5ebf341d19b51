"""What one model had of a device, as it is counted."""

from collections.abc import Mapping

import attrs

from streaminfer.batching.device.statistics import DeviceModelStatistics

__all__ = ["Account"]


@attrs.define
class Account:
    """What one model had of a device; `DeviceModelStatistics` says what each number is."""

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
            slowdowns: by each other model, how much slower this one is beside it.
        """
        return DeviceModelStatistics(**attrs.asdict(self), slowdowns=slowdowns)
