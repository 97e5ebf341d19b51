"""Statistics of a device."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["DeviceModelStatistics", "DeviceStatistics"]


@attrs.frozen(kw_only=True)
class DeviceModelStatistics(Snapshot):
    """What one model had of a device.

    Attributes:
        batches: batches that began.
        busy_s: seconds for which its batches ran; where several ran at once, each counts.
        waits: turns of other models while it had a batch to send.
        longest_wait_s: the longest that it had a batch to send before its turn came.
        loads: how often it was loaded into the device's memory, or failed to be.
        load_s: seconds for which it was being loaded, with what other models took to leave; no part of ``busy_s``.
        promoted: batches of the background that continued at the usual priority, because they would have been late.
        slowdowns: by other model, how many times as long a batch takes while one of that model runs, as learned.
    """

    batches: int
    busy_s: float
    waits: int
    longest_wait_s: float
    loads: int
    load_s: float
    promoted: int
    slowdowns: Mapping[str, float]


@attrs.frozen(kw_only=True)
class DeviceStatistics(Snapshot):
    """Counters of a `Device` since it was made.

    Attributes:
        name: of the device.
        concurrency: how many batches may run at once.
        running: batches that run now.
        waiting: names of the models that wait for a turn now: a request is queued, and a worker of their own is free.
        memory_bytes: of its memory; ``None``: all models fit.
        loaded: names of the models that are in memory, of those that can leave it.
        preemptive: models with a tighter objective than others go first, also while a batch of another runs.
        background: names of the models whose batches give way while they run; empty where the device is not preemptive.
        models: by name, what each model had of the device; a second model of a name is ``name#2``.
    """

    name: str
    concurrency: int
    running: int
    waiting: tuple[str, ...]
    memory_bytes: int | None
    loaded: tuple[str, ...]
    preemptive: bool
    background: tuple[str, ...]
    models: Mapping[str, DeviceModelStatistics]

    @property
    def busy_s(self) -> float:
        """Seconds for which batches ran; where several ran at once, each counts."""
        return sum(model.busy_s for model in self.models.values())
