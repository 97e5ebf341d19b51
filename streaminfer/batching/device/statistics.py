"""Statistics of a device."""

from collections.abc import Mapping

import attrs

from streaminfer._internal.snapshot import Snapshot

__all__ = ["Account", "DeviceModelStatistics", "DeviceStatistics"]


@attrs.frozen(kw_only=True)
class DeviceModelStatistics(Snapshot):
    """Counters of one model's use of a device.

    Attributes:
        batches: batches that began.
        busy_s: seconds for which its batches ran; if several ran at once, each counts.
        waits: turns of other models while it had a batch to send.
        longest_wait_s: longest time from when it had a batch to send until its turn.
        loads: how often it was loaded into the device's memory, failed loads included.
        load_s: seconds of its loads, including the evictions of other models; not part of ``busy_s``.
        promoted: background batches that continued at the usual priority, because they would be late or waited long.
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


@attrs.define
class Account:
    """Counters of one model's use of the device; `DeviceModelStatistics` describes each."""

    batches: int = 0
    busy_s: float = 0.0
    waits: int = 0
    longest_wait_s: float = 0.0
    loads: int = 0
    load_s: float = 0.0
    promoted: int = 0


@attrs.frozen(kw_only=True)
class DeviceStatistics(Snapshot):
    """Counters of a `Device` since its creation.

    Attributes:
        name: name of the device.
        number: number of the device in this process, in the order of creation: devices may have the same name.
        concurrency: how many batches may run at once.
        running: batches that are running.
        waiting: names of the models that wait for a turn: a request is queued, and a worker of their batcher is free.
        memory_bytes: size of its memory; ``None``: all models fit.
        loaded: names of the models in memory, of those that can leave it.
        preemptive: whether models with a tighter objective take precedence, even while a batch of another model runs.
        background: names of the models whose running batches yield to others; empty if the device is not preemptive.
        models: counters of each model, by name; a second model of a name is ``name#2``.
    """

    name: str
    number: int = attrs.field(eq=False)
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
        """Seconds for which batches ran; if several ran at once, each counts."""
        return sum(model.busy_s for model in self.models.values())
