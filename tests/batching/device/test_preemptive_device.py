"""A preemptive device with live batchers: the foreground begins at once, the background takes turns, and pauses end."""

import asyncio
import random

import pytest
from device_calls import ask, batcher, call_at_random, failing_at_random, settle

import streaminfer as si
from streaminfer.batching.device.preemption import MOST_PACE
from streaminfer.protocols import BackgroundRuns, ExampleInputs
from streaminfer.testing import HANG, ScriptedBackend, run


class Model(ScriptedBackend):
    """Scripted backend that notes whether it is in the background, and when its batches begin, are raised and yield."""

    def __init__(self, name, *steps, loop, obstacle="", **options):
        super().__init__(*steps, **options)
        self.name = name
        self.is_background = False
        self.begins_ms = []
        self.raises_ms = []
        self.yields_ms = []
        self.background_runs = BackgroundRuns(
            self.set_background, self.raise_running, lambda: obstacle, self.yield_running
        )
        self._loop = loop

    def set_background(self, is_background):
        self.is_background = is_background

    def raise_running(self):
        self.raises_ms.append(self._loop.time() * 1e3)

    def yield_running(self):
        self.yields_ms.append(self._loop.time() * 1e3)

    async def infer(self, batch):
        self.begins_ms.append(self._loop.time() * 1e3)
        return await super().infer(batch)


@pytest.fixture
def device():
    return si.Device("core", preemptive=True)


def pair(loop, device, **options):
    """Return an urgent and a patient model, and a batcher of each, which has not started."""
    urgent = Model("urgent", loop=loop, duration_s=0.002)
    patient = Model("patient", loop=loop, duration_s=0.050)
    return (
        urgent,
        patient,
        batcher(loop, device, urgent, slo_s=0.025, **options),
        batcher(loop, device, patient, slo_s=0.2, **options),
    )


async def test_foreground_starts_while_background_runs(loop, device):
    """A foreground batch starts at once while a background batch runs."""
    urgent, patient, see, hear = pair(loop, device)
    await see.start()
    await hear.start()

    slow = ask(hear)
    await asyncio.sleep(0.010)
    await ask(see)

    assert (patient.begins_ms, urgent.begins_ms) == ([0.0], [10.0])
    assert device.statistics().running == 1
    assert device.statistics().background == ("patient",)
    await slow


async def test_background_yields_at_each_foreground_start(loop, device):
    """A running background batch yields each time a foreground batch starts."""
    urgent, patient, see, hear = pair(loop, device)
    await see.start()
    await hear.start()

    await ask(see)  # while nothing runs in the background
    slow = ask(hear)
    await asyncio.sleep(0.010)
    await ask(see)
    await asyncio.sleep(0.010)
    await ask(see)
    await slow

    assert patient.yields_ms == urgent.begins_ms[1:] == [12.0, 24.0]
    assert urgent.yields_ms == []


async def test_the_background_takes_turns(loop, device):
    _urgent, patient, see, hear = pair(loop, device)
    other = Model("other", loop=loop, duration_s=0.050)
    also = batcher(loop, device, other, slo_s=0.2)
    for service in (see, hear, also):
        await service.start()

    await settle([ask(hear), ask(also)])

    assert sorted([*patient.begins_ms, *other.begins_ms]) == [0.0, 50.0]
    assert device.statistics().background == ("other", "patient")


async def test_models_of_one_objective_take_turns(loop, device):
    models = [Model(name, loop=loop, duration_s=0.010) for name in "ab"]
    services = [batcher(loop, device, model, slo_s=0.1) for model in models]
    for service in services:
        await service.start()

    await settle([ask(service) for service in services])

    assert sorted(begin for model in models for begin in model.begins_ms) == [0.0, 10.0]
    assert device.statistics().background == ()


async def test_the_background_follows_starts_and_stops(loop, device):
    _urgent, patient, see, hear = pair(loop, device)

    await hear.start()
    alone = patient.is_background
    await see.start()
    behind = patient.is_background
    await see.stop()
    again_alone = patient.is_background
    await see.start()

    assert (alone, behind, again_alone, patient.is_background) == (False, True, False, True)
    await hear.stop()
    assert not patient.is_background


async def test_the_background_follows_the_objective(loop, device):
    urgent, patient = Model("urgent", loop=loop), Model("patient", loop=loop)
    tight = si.AdaptiveBatcher(max_batch_size=8, slo_s=0.025, device=device, stack=False, clock=loop.clock)
    loose = si.AdaptiveBatcher(max_batch_size=8, slo_s=0.2, device=device, stack=False, clock=loop.clock)
    async with si.Stack(tight, urgent, clock=loop.clock), si.Stack(loose, patient, clock=loop.clock):
        loose.reconfigure(slo_s=0.010)

        assert (urgent.is_background, patient.is_background) == (True, False)


async def test_model_that_cannot_yield_is_rejected_at_start(loop, device):
    """A model that cannot run in the background is rejected when it starts."""
    _, _, see, _ = pair(loop, device)
    stuck = batcher(loop, device, Model("stuck", loop=loop, obstacle="it runs on the event loop"), slo_s=0.2)
    await see.start()

    with pytest.raises(ValueError, match=r"stuck cannot run in the background .*it runs on the event loop"):
        await stuck.start()


async def test_a_model_whose_start_failed_is_not_foreground(loop, device):
    """A model whose start failed is not in the foreground; it enters when a later start succeeds."""
    urgent = Model("urgent", ValueError("no such kernel"), loop=loop, example=1.0)
    urgent.example_inputs = lambda: ExampleInputs(1.0, urgent.infer)
    patient = Model("patient", loop=loop, obstacle="it is on a GPU")
    see, hear = batcher(loop, device, urgent, slo_s=0.025), batcher(loop, device, patient, slo_s=0.2)
    with pytest.raises(si.BackendError, match="no such kernel"):
        await see.start()

    await hear.start()
    assert (await ask(hear)).outputs == 1.0
    await hear.stop()

    patient = Model("patient", loop=loop)
    await batcher(loop, device, patient, slo_s=0.2).start()
    await see.start()
    assert patient.is_background
    assert (await ask(see)).outputs == 1.0


async def test_a_lone_foreground_acts_as_without_a_device(loop, device):
    rng = random.Random(1)
    models = [Model("model", loop=loop, duration_s=lambda rows: 0.001 + 0.0005 * rows) for _ in range(3)]
    services = [
        batcher(loop, shared, model, slo_s=0.025) for shared, model in zip([device, None], models, strict=False)
    ]
    idle = batcher(loop, device, models[2], slo_s=1.0)
    for service in (*services, idle):
        await service.start()
    calls = []
    for _ in range(300):
        await asyncio.sleep(rng.expovariate(1 / 0.0007))
        calls += [ask(service) for service in services]
    await settle(calls)

    assert models[0].begins_ms == models[1].begins_ms
    assert models[0].batch_sizes == models[1].batch_sizes


async def test_foreground_pauses_while_background_is_late(loop, device):
    """The foreground pauses between its batches while the background is late."""
    urgent, _patient, see, hear = pair(loop, device)
    await see.start()
    await hear.start()
    device._preemption.pressure = 1.0
    slow = ask(hear)
    await asyncio.sleep(0)

    calls = []
    for _ in range(40):
        calls.append(ask(see))
        await asyncio.sleep(0.0005)
    await settle(calls)
    device._preemption.pressure = 0.0
    steps = [second - first for first, second in zip(urgent.begins_ms, urgent.begins_ms[1:], strict=False)]

    assert min(steps) >= 2.0
    assert max(urgent.batch_sizes) > 4
    await slow


async def test_a_pause_ends_with_the_background(loop, device):
    urgent, patient, see, hear = pair(loop, device)
    patient._duration_s = 0.0055
    await see.start()
    await hear.start()
    for _ in range(3):
        await ask(see)  # so that the batcher learns the duration of a batch
    device._preemption.pressure = 1.0
    begin_ms = loop.time() * 1e3
    urgent._duration_s = 0.0001
    slow = ask(hear)
    await asyncio.sleep(0.005)
    await ask(see)
    last = ask(see)
    await settle([slow, last])

    assert urgent.begins_ms[-1] - begin_ms == pytest.approx(5.5)


async def test_a_pause_ends_without_another_arrival(loop, device):
    urgent, _patient, see, hear = pair(loop, device)
    await see.start()
    await hear.start()
    slow = ask(hear)
    await asyncio.sleep(0)
    device._preemption.pressure = 1.0
    urgent._duration_s = 0.0001

    first, second = ask(see), None
    await asyncio.sleep(0.00005)
    second = ask(see)
    await settle([first, second])

    pause_ms = urgent.begins_ms[1] - urgent.begins_ms[0]
    assert 0.1 < pause_ms <= 25 * MOST_PACE
    await slow


@pytest.mark.parametrize(
    ("slo_s", "raises_ms"), [(0.2, [100.0]), (None, [1000.0])], ids=["half of its time", "max_wait_s"]
)
async def test_held_up_batch_continues_at_normal_priority(loop, device, slo_s, raises_ms):
    """A background batch that is held up too long continues at normal priority."""
    _, _, see, _ = pair(loop, device)
    slow = Model("slow", loop=loop, duration_s=5.0)
    hear = batcher(loop, device, slow, slo_s=slo_s)
    await see.start()
    await hear.start()

    await settle([ask(hear)])

    assert slow.raises_ms == raises_ms
    assert device.statistics().models["slow"].promoted == 1


async def test_batch_on_time_stays_at_lowest_priority(loop, device):
    """A background batch that will be on time stays at the lowest priority."""
    _, patient, see, hear = pair(loop, device)
    await see.start()
    await hear.start()

    await settle([ask(hear)])
    await asyncio.sleep(1.0)

    assert patient.raises_ms == []
    assert device.statistics().models["patient"].promoted == 0


async def test_the_foreground_is_never_promoted(loop, device):
    _, _, _, hear = pair(loop, device)
    slow = Model("slow", loop=loop, duration_s=0.024)
    see = batcher(loop, device, slow, slo_s=0.025)
    await see.start()
    await hear.start()

    await ask(see)

    assert slow.raises_ms == []


@pytest.mark.parametrize("policy", ["lookahead", "greedy"])
@pytest.mark.parametrize("seed", range(3))
async def test_each_request_ends_once_under_random_failures(loop, device, policy, seed):
    rng = random.Random(seed)
    step = failing_at_random(rng)
    models = [
        Model(name, loop=loop, duration_s=seconds, then=step)
        for name, seconds in (("a", 0.001), ("b", 0.02), ("c", 0.03))
    ]
    slos_s = (0.025, 0.1, None)
    services = [
        batcher(loop, device, model, slo_s=slo, policy=policy) for model, slo in zip(models, slos_s, strict=True)
    ]
    for service in services:
        await service.start()
    await call_at_random(rng, services, calls=400, pause_s=0.001)

    statistics = device.statistics()
    assert (statistics.running, statistics.waiting) == (0, ())
    assert statistics.background == ("b", "c")
    for service in services:
        assert service.statistics().queued == service.statistics().running == 0
        await service.stop()


async def test_hung_background_does_not_delay_foreground(loop, device):
    """A model that hangs in the background does not delay the foreground."""
    urgent, _, see, _ = pair(loop, device)
    hanging = batcher(loop, device, Model("hanging", HANG, loop=loop), slo_s=0.2)
    await see.start()
    await hanging.start()

    stuck = ask(hanging)
    await asyncio.sleep(0.010)
    await ask(see)

    assert urgent.begins_ms == [10.0]
    assert isinstance((await settle([stuck]))[0], si.DeadlineExceeded)
    assert device.statistics().running == 0


def test_another_loop_takes_over_an_idle_device():
    """Another event loop can use a preemptive device after the loop that used it has ended."""
    device = si.Device("core", preemptive=True)
    told = []

    async def serve(loop):
        urgent, patient, see, hear = pair(loop, device)
        await see.start()
        await hear.start()
        told.append((urgent.is_background, patient.is_background))
        await settle([ask(see), ask(hear)])

    run(serve)
    run(serve)

    assert told == [(False, True)] * 2
    assert device.statistics().running == 0


def test_preemption_with_memory_bytes_is_rejected():
    with pytest.raises(ValueError, match="memory_bytes"):
        si.Device("core", preemptive=True, memory_bytes=1)


def test_preemptive_is_a_boolean():
    with pytest.raises(TypeError, match="preemptive"):
        si.Device("core", preemptive="yes")


def test_preemptive_cannot_be_changed(device):
    with pytest.raises(AttributeError):
        device.preemptive = False
    assert device.preemptive


def test_the_reports_name_the_background(device):
    async def main(loop):
        _, _, see, hear = pair(loop, device)
        await see.start()
        await hear.start()
        assert repr(device) == "Device('core', preemptive=True, running=0/1, waiting=0)"
        assert "<tr><th>background</th><td>patient</td></tr>" in device._repr_html_()

    run(main)
