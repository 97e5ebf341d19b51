"""Batchers with their traces on one device in simulated time, with shared turns or each alone.

A `Device` and the policies of its batchers are synchronous, so the simulator runs the same objects as the live batcher.
It moves an integer clock from event to event, like :mod:`~streaminfer.simulation.simulator` does for one model, with
the same order of events within an instant.

*Batches that run at once* slow each other down: each progresses at a rate of ``1 / (1 + (slowdown - 1) · others)``. A
``slowdown`` of 2 is a device whose time two models share evenly, 1 a device that has room for both, ``None`` a device
that runs one batch after the other, in the order in which they were sent.

Complexity: O(log n) per event, plus the cost of the policies and the turns.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from streaminfer._internal.validation import check_count, check_number, expected
from streaminfer.batching.device.claim import Claim
from streaminfer.batching.device.device import Device
from streaminfer.batching.device.member import Residence
from streaminfer.batching.device.statistics import DeviceStatistics
from streaminfer.batching.planner import kernel_loader
from streaminfer.batching.planner.lookahead import Lookahead
from streaminfer.batching.planner.outlook import Outlook
from streaminfer.batching.policy import Decision
from streaminfer.batching.queue._ticket_cy import NEVER, Execution, Ticket
from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
from streaminfer.simulation.devices.model_load import ModelLoad, check_loads
from streaminfer.simulation.model_run import ModelRun
from streaminfer.simulation.simulation_result import SimulationResult
from streaminfer.simulation.simulator import check_noise

__all__ = ["DeviceResult", "simulate_device"]


@attrs.frozen(kw_only=True, eq=False)
class DeviceResult:
    """Outcomes of the requests of all models.

    Attributes:
        models: by name, the outcomes of the model's requests and batches.
        device: counters of the device; ``None``: the batchers did not take turns.
    """

    models: Mapping[str, SimulationResult]
    device: DeviceStatistics | None

    @property
    def on_time(self) -> int:
        """Requests of all models that were completed by their deadline."""
        return sum(result.on_time for result in self.models.values())

    @property
    def share_on_time(self) -> float:
        """``on_time`` as a share of all arrivals; 1.0 if there were none."""
        arrivals = sum(result.arrivals_s.size for result in self.models.values())
        return self.on_time / arrivals if arrivals else 1.0


def simulate_device(
    loads: Mapping[str, ModelLoad],
    *,
    concurrency: int = 1,
    shared: bool = True,
    slowdown: float | None = 2.0,
    weights: Mapping[str, float] | None = None,
    max_wait_s: float = 1.0,
    memory_bytes: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> DeviceResult:
    """Run the batchers of several models on one device over traces of arrivals.

    Args:
        loads: the models and their requests, by name.
        concurrency: as for the `Device`.
        shared: the batchers take turns on a `Device`; ``False``: each sends its batches as if it had the device alone,
            and learns their durations.
        slowdown: how many times as long a batch takes while one other runs, ≥ 1; ``None``: the device runs one batch
            after the other.
        weights: as for the `Device`, by the names of ``loads``.
        max_wait_s: as for the `Device`.
        memory_bytes: as for the `Device`, whose memory is empty at first. Needs ``shared``.
        noise: each duration is multiplied by ``exp(noise * z)``, z standard normal, as in `simulate`.
        seed: seed of the noise.

    Returns:
        Outcomes of all requests and batches.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
    """
    expectation = "a mapping of name to ModelLoad"
    check_loads(loads, expectation)
    if slowdown is not None:
        slowdown = check_number("slowdown", slowdown, "a finite number ≥ 1", lambda it: 1.0 <= it < float("inf"))
    if memory_bytes is not None and not shared:
        raise ValueError(expected("memory_bytes", "None where batchers do not share the device", memory_bytes))
    device = Device(
        "simulated", concurrency=concurrency, weights=weights, max_wait_s=max_wait_s, memory_bytes=memory_bytes
    )
    for name in device.weights:
        if name not in loads:
            raise ValueError(expected("weights", "names of loads", name))
    learns = not shared or concurrency > 1
    simulation = _Simulation(
        device=device if shared else None,
        slowdown=slowdown,
        noise=check_noise(noise),
        rng=np.random.default_rng(check_count("seed", seed, at_least=0)),
    )
    simulation.models = [_Model(name, load, simulation, learns) for name, load in loads.items()]
    for model in simulation.models:
        device.check_fits(model)
    kernel_loader.load()
    simulation.run()
    return DeviceResult(
        models={model.source: model.result() for model in simulation.models},
        device=device.statistics() if shared else None,
    )


@attrs.define(eq=False)
class _Work:
    """A running batch or load, and the nanoseconds of work that are left of it."""

    finish: Callable[[int], None]
    left_ns: float


@attrs.define(kw_only=True, eq=False)
class _Simulation:
    """The clock, the device, and the running batches and loads."""

    device: Device | None
    slowdown: float | None
    noise: float
    rng: np.random.Generator
    models: "list[_Model]" = attrs.field(factory=list)
    running: list[_Work] = attrs.field(factory=list)
    now_ns: int = 0

    @property
    def pace(self) -> float:
        """Nanoseconds of time per nanosecond of work."""
        if self.slowdown is None:
            return 1.0
        return 1.0 + (self.slowdown - 1.0) * (len(self.running) - 1)

    def run(self) -> None:
        """Move from event to event until none is left."""
        while True:
            now_ns = min((model.next_ns for model in self.models), default=NEVER)
            progressing = self.running[:1] if self.slowdown is None else self.running
            for batch in progressing:
                now_ns = min(now_ns, self.now_ns + max(round(batch.left_ns * self.pace), 0))
            if now_ns == NEVER:
                return
            passed, self.now_ns = (now_ns - self.now_ns) / self.pace if self.running else 0.0, now_ns
            for batch in progressing:
                batch.left_ns -= passed
            ended = [batch for batch in self.running if batch.left_ns < 1.0]
            self.running = [batch for batch in self.running if batch.left_ns >= 1.0]
            for batch in ended:
                batch.finish(now_ns)
            for model in self.models:
                model.admit(now_ns)
            if self.device is None:
                for model in self.models:
                    model.dispatch(now_ns)
                continue
            for model in self.models:
                self.device.join(model, now_ns)
            self.device.dispatch(now_ns)

    def launch(self, finish: Callable[[int], None], work_ns: float) -> None:
        """Run a batch or load of so many nanoseconds of work, and call ``finish`` at its end."""
        self.running.append(_Work(finish, max(1.0, float(work_ns))))


class _Model(ModelRun):
    """One model on the device: the `DeviceMember` of a simulation, and the `Residence` in simulated memory."""

    runs_inline = False

    def __init__(self, name: str, load: ModelLoad, simulation: _Simulation, learns: bool) -> None:
        service_time = LearnedServiceTime(prior=load.service_time) if learns else load.service_time
        self._lookahead = Lookahead(load.max_batch_size, service_time)
        super().__init__(self._lookahead, load.arrivals_ns, load.arrivals_ns + load.slo_ns)
        self.source = name
        self.memory_bytes = load.memory_bytes
        self.residence: Residence | None = self if load.memory_bytes else None
        self._load = load
        self._simulation = simulation
        self._learns = learns
        self.claim = Claim(self.queue, lambda size: int(load.durations_ns[size]), None)
        self._is_running = False

    @property
    def is_waiting(self) -> bool:
        return not self._is_running and self.queue.queued > 0

    def dispatch(self, now_ns: int) -> None:
        """Send a batch as if the model had the device alone."""
        if self.is_waiting:
            decision = self.propose(now_ns)
            if decision is not None:
                self.grant(decision.batch, decision, now_ns)

    def load(self, _leaving: Sequence[Any], done: Callable[[int, bool, int], None]) -> None:
        """Load the model in simulated time."""
        self._simulation.launch(lambda now_ns: done(now_ns, True, 0), self._load.load_ns)

    def outlook(self, now_ns: int, batch: Sequence[Ticket]) -> Outlook | None:
        return self._lookahead.outlook(self.queue, now_ns, batch)

    def expected_ns(self, execution: Execution) -> int:
        return self._lookahead.expected_ns(len(execution.tickets))

    def grant(self, batch: Sequence[Ticket], decision: Decision, now_ns: int) -> None:
        execution = self.take(batch, now_ns, decision.reason if batch is decision.batch else "planned")
        self._is_running = True
        if self._simulation.device is not None:
            self._simulation.device.begin(execution, self, now_ns)
        noise, rng = self._simulation.noise, self._simulation.rng
        factor = float(np.exp(noise * rng.standard_normal())) if noise else 1.0
        work_ns = self._load.durations_ns[len(execution.tickets)] * factor
        self._simulation.launch(functools.partial(self.finish, execution), work_ns)

    def settle(self) -> None:
        """Do nothing, because the simulation reads :attr:`next_ns`."""

    def finish(self, execution: Execution, now_ns: int) -> None:
        """Note the end of a batch, and learn from it."""
        self._is_running = False
        if self._simulation.device is not None:
            self._simulation.device.end(execution, now_ns, succeeded=True)
        self.end(execution, now_ns)
        if self._learns:
            self._lookahead.observe(len(execution.inputs), now_ns - execution.effective_start_ns, now_ns)
