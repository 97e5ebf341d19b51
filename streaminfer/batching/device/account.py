"""What one model had of a device, as it is counted."""

from collections.abc import Mapping

import attrs

from streaminfer.batching.device.statistics import DeviceModelStatistics

__all__ = ["Account"]


@attrs.define
class Account:
    """What one model had of a device; `DeviceModelStatistics` says what each number is."""

    batches: int = 0
    busy_ns: int = 0
    waits: int = 0
    longest_wait_ns: int = 0
    loads: int = 0
    load_ns: int = 0
    promoted: int = 0

    def statistics(self, slowdowns: Mapping[str, float]) -> DeviceModelStatistics:
        """Return a frozen snapshot.

        Args:
            slowdowns: by each other model, how much slower this one is beside it.
        """
        return DeviceModelStatistics(
            batches=self.batches,
            busy_s=self.busy_ns / 1e9,
            waits=self.waits,
            longest_wait_s=self.longest_wait_ns / 1e9,
            loads=self.loads,
            load_s=self.load_ns / 1e9,
            promoted=self.promoted,
            slowdowns=slowdowns,
        )
