"""`Device` that live batchers share: batches never exceed its concurrency, and each slot is always given back."""

import asyncio
import contextlib
import functools
import random
from fractions import Fraction

import pytest
from device_calls import ask, batcher, call_at_random, failing_at_random, settle

import streaminfer as si
from streaminfer.batching.device.interference import Interference
from streaminfer.testing import HANG, ScriptedBackend, VirtualLoop, run


class Model(ScriptedBackend):
    """Scripted backend with a name; the class counts the running batches of all models."""

    together = 0
    most = 0

    def __init__(self, name, *steps, **options):
        super().__init__(*steps, **options)
        self.name = name

    async def infer(self, batch):
        Model.together += 1
        Model.most = max(Model.most, Model.together)
        try:
            return await super().infer(batch)
        finally:
            Model.together -= 1


@pytest.fixture(autouse=True)
def _nothing_runs():
    Model.together = Model.most = 0
    yield
    assert Model.together == 0


async def test_model_waits_for_turn_only_with_free_worker(loop):
    """A model waits for a turn only while one of its own workers is free.

    A model whose batch runs does not wait, whatever it has queued.
    """
    device = si.Device("gpu:0")
    services = [
        batcher(loop, device, Model(name, duration_s=1.0), max_batch_size=1, slo_s=None, policy="greedy")
        for name in ("a", "b")
    ]
    calls = [ask(service) for service in services for _ in range(3)]
    await asyncio.sleep(0.1)
    statistics = device.statistics()
    assert (statistics.running, statistics.waiting) == (1, ("b",))
    assert [service.statistics().queued for service in services] == [2, 3]
    await settle(calls)
    for service in services:
        await service.stop()


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("policy", ["lookahead", "greedy"])
@pytest.mark.parametrize("seed", range(3))
async def test_running_batches_never_exceed_concurrency(loop, concurrency, policy, seed):
    rng = random.Random(seed)
    device = si.Device("gpu:0", concurrency=concurrency)
    step = failing_at_random(rng)
    models = [Model(name, duration_s=seconds, then=step) for name, seconds in (("a", 0.01), ("b", 0.02), ("c", 0.03))]
    services = [batcher(loop, device, model, policy=policy) for model in models]
    await call_at_random(rng, services, calls=300, pause_s=0.003)

    statistics = device.statistics()
    assert Model.most == concurrency
    assert (statistics.running, statistics.waiting) == (0, ())
    assert min(model.batches for model in statistics.models.values()) > 5
    for service in services:
        counts = service.statistics()
        assert counts.queued == counts.running == 0
        assert counts.device == statistics
        await service.stop()


async def test_the_slot_comes_back_from_a_model_that_hangs(loop):
    device = si.Device("gpu:0")
    hanging, healthy = batcher(loop, device, Model("a", HANG)), batcher(loop, device, Model("b", duration_s=0.01))

    calls = [ask(hanging), ask(healthy, deadline_ns=loop.clock() + 10**9)]
    first, second = await settle(calls)

    assert isinstance(first, si.DeadlineExceeded)
    assert second.outputs == 1.0
    assert device.is_free


async def test_the_slot_comes_back_from_a_caller_that_leaves(loop):
    device = si.Device("gpu:0")
    hanging, healthy = batcher(loop, device, Model("a", HANG)), batcher(loop, device, Model("b", duration_s=0.01))
    leaving, staying = ask(hanging), ask(healthy)
    await asyncio.sleep(0.01)
    assert not device.is_free

    leaving.cancel()

    assert (await staying).outputs == 1.0


async def test_a_stop_drains_while_others_wait(loop):
    device = si.Device("gpu:0")
    services = [batcher(loop, device, Model(name, duration_s=0.01), slo_s=None) for name in "ab"]
    calls = [ask(service) for service in services for _ in range(20)]
    await asyncio.sleep(0)

    await services[0].stop()

    done = await settle(calls)
    assert [answer.outputs for answer in done] == [1.0] * 40
    with pytest.raises(si.Closed):
        await services[0].call(si.Request(1.0))
    assert (await services[1].call(si.Request(1.0))).outputs == 1.0


async def test_a_stop_without_draining_gives_the_slot_back(loop):
    device = si.Device("gpu:0")
    hanging, healthy = batcher(loop, device, Model("a", HANG)), batcher(loop, device, Model("b"))
    calls = [ask(hanging), ask(healthy)]
    await asyncio.sleep(0.01)

    await hanging.stop(drain=False)

    first, second = await settle(calls)
    assert isinstance(first, si.Closed)
    assert second.outputs == 1.0


async def test_a_batcher_serves_again_after_a_stop(loop):
    service = batcher(loop, si.Device("gpu:0"), Model("a", duration_s=0.01))
    await service.stop()
    await service.start()

    assert (await service.call(si.Request(1.0))).outputs == 1.0


async def test_functions_on_the_loop_take_turns(loop):
    device = si.Device("cpu:0")
    order = []

    def function_of(name):
        def function(batch):
            order.append(name)
            return batch * 2

        return function

    services = [
        si.AdaptiveBatcher(max_batch_size=1, device=device, clock=loop.clock).wrap(function_of(name)) for name in "ab"
    ]

    assert await asyncio.gather(*(service(2.0) for service in services for _ in range(3))) == [4.0] * 6
    assert sorted(order) == ["a"] * 3 + ["b"] * 3
    assert device.is_free


async def test_admission_counts_what_runs_on_the_device(loop):
    """Admission counts the batch that another model runs on the shared device."""
    device = si.Device("gpu:0")
    slow, fast = (
        batcher(loop, device, Model(name, duration_s=seconds), slo_s=None)
        for name, seconds in (("a", 1.0), ("b", 0.01))
    )
    for service in (slow, fast):
        await service.call(si.Request(1.0))
    running = ask(slow)
    await asyncio.sleep(0.1)

    admission = fast.admission(si.Request(1.0, deadline_ns=loop.clock() + 500_000_000), loop.clock())

    assert (admission.ok, admission.reason) == (False, "infeasible")
    await running


def test_a_batcher_of_another_event_loop_is_rejected():
    device = si.Device("gpu:0")
    first = si.AdaptiveBatcher(max_batch_size=1, device=device).wrap(lambda batch: batch)
    second = si.AdaptiveBatcher(max_batch_size=1, device=device).wrap(lambda batch: batch)
    loop, other = VirtualLoop(), VirtualLoop()
    try:
        assert loop.run_until_complete(first(1.0)) == 1.0
        with pytest.raises(RuntimeError, match=r"Device\('gpu:0'.* serves batchers of another event loop"):
            other.run_until_complete(second(1.0))
    finally:
        loop.close()
        other.close()


def test_slots_of_a_closed_loop_are_forgotten():
    device = si.Device("gpu:0")
    model = Model("a", HANG)
    loop = VirtualLoop()
    service = batcher(loop, device, model, slo_s=None)

    async def leave_behind():
        call = ask(service)
        await asyncio.sleep(0.01)
        assert not device.is_free
        return call

    call = loop.run_until_complete(leave_behind())
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.gather(call, return_exceptions=True))
    loop.close()

    async def main(loop):
        other = batcher(loop, device, Model("b"))
        return (await other.call(si.Request(1.0))).outputs

    assert run(main) == 1.0


async def test_statistics_count_device_time_by_model(loop):
    device = si.Device("gpu:0")
    services = [batcher(loop, device, Model(name, duration_s=seconds)) for name, seconds in (("a", 0.01), ("b", 0.02))]
    calls = [ask(services[0])]
    await asyncio.sleep(0.005)
    await settle([*calls, *(ask(service) for service in services)])

    models = device.statistics().models

    assert (models["a"].batches, models["b"].batches) == (2, 1)
    assert (models["a"].busy_s, models["b"].busy_s) == (0.02, 0.02)
    assert models["a"].waits + models["b"].waits == 1
    assert sorted(model.longest_wait_s for model in models.values()) in ([0.0, 0.015], [0.005, 0.02])
    assert device.statistics().busy_s == pytest.approx(0.04)
    assert "running" in device._repr_html_()


async def test_statistics_from_another_thread_change_nothing(loop, monkeypatch):
    """Statistics change nothing on the device, even if batches begin while the waiting models are listed.

    This happens in the thread of an exporter, while batchers run on the event loop.
    """
    device = si.Device("gpu:0")
    services = [batcher(loop, device, Model(name, HANG)) for name in "abc"]
    calls = [ask(service) for service in services]
    await asyncio.sleep(0.01)
    members = list(device._waiting)
    names = dict(device._names)

    def leaves(member):
        device._waiting.pop(member, None)  # its batch begins
        return True

    monkeypatch.setattr(type(members[0]), "is_waiting", property(leaves))
    assert len(device.statistics().waiting) == len(members) == 2
    assert dict(device._names) == names
    monkeypatch.undo()
    for service in services:
        await service.stop(drain=False)
    await settle(calls)


async def test_models_with_the_same_name_are_numbered(loop):
    device = si.Device("gpu:0", weights={"same#2": 2})
    options = {"max_batch_size": 1, "slo_s": None}
    services = [batcher(loop, device, Model("same", duration_s=seconds), **options) for seconds in (0.01, 0.02)]

    await settle([ask(service) for service in services])

    assert {name: had.busy_s for name, had in device.statistics().models.items()} == {"same": 0.01, "same#2": 0.02}

    for service in services:
        await service.stop()
    after = batcher(loop, device, Model("same", duration_s=0.01), **options)
    await ask(after)
    assert device.statistics().models["same"].batches == 2


async def test_time_with_an_empty_queue_is_no_waiting(loop):
    """The time during which the queue of a model is empty does not count as waiting."""
    device = si.Device("gpu:0")
    busy = batcher(loop, device, Model("a", duration_s=1.0), slo_s=None)
    other = batcher(loop, device, Model("b", duration_s=0.01), slo_s=0.02)
    running = ask(busy)
    await asyncio.sleep(0.1)
    expired = ask(other)
    with pytest.raises(si.DeadlineExceeded):
        await expired
    cancelled = ask(other)
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await settle([cancelled])
    await asyncio.sleep(0.995 - loop.time())

    assert device.statistics().waiting == ()
    assert (await ask(other)).outputs == 1.0

    await running
    assert device.statistics().models["b"].longest_wait_s == pytest.approx(0.005)


def test_interrupt_in_one_model_keeps_timers_of_others():
    """An interrupt raised by one model leaves the timers of the other models in place."""
    device = si.Device("cpu:0")
    loop = VirtualLoop()

    def interrupted(_batch):
        raise KeyboardInterrupt

    options = {"device": device, "clock": loop.clock, "policy": "greedy"}
    running = batcher(loop, device, Model("a", duration_s=0.01))
    broken = si.AdaptiveBatcher(max_batch_size=1, **options).wrap(interrupted)
    patient = si.AdaptiveBatcher(max_batch_size=8, max_queue_delay_s=0.05, **options).wrap(lambda batch: batch)

    async def ask_both():
        calls = [ask(running)]
        await asyncio.sleep(0.001)
        return await settle([*calls, asyncio.ensure_future(patient(2.0)), asyncio.ensure_future(broken(1.0))])

    asking = loop.create_task(ask_both())
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(asyncio.shield(asking))
        answers = loop.run_until_complete(asking)
    finally:
        loop.close()

    assert answers[1] == 2.0
    assert isinstance(answers[2], si.BackendError)


async def test_model_kept_apart_runs_within_max_wait(loop, monkeypatch):
    """A model that is kept apart from others is served once it has waited for `max_wait_s`."""
    monkeypatch.setattr(Interference, "keeps_apart", lambda self, model: model == "c" and bool(self._running))
    device = si.Device("gpu:0", concurrency=2, max_wait_s=0.1)
    options = {"max_batch_size": 1, "slo_s": None}
    first, second, apart = (batcher(loop, device, Model(name, duration_s=0.01), **options) for name in "abc")
    calls = [ask(first) for _ in range(40)]
    await asyncio.sleep(0.005)
    calls += [ask(second) for _ in range(40)]

    await ask(apart)

    assert 0.1 <= loop.time() <= 0.13
    await settle(calls)


async def test_cost_meter_splits_device_time_over_models(loop):
    """One meter in both stacks charges each model for its own batches, which never run at the same time."""
    device, meter = si.Device("gpu:0"), si.CostMeter(per_second=1.0)
    stacks = [
        si.Stack(
            meter,
            si.AdaptiveBatcher(max_batch_size=8, device=device, stack=False),
            Model(name, duration_s=seconds),
            clock=loop.clock,
        )
        for name, seconds in (("a", 0.01), ("b", 0.03))
    ]
    for stack in stacks:
        await stack.start()

    await asyncio.gather(*(stack(1.0) for stack in stacks for _ in range(12)))

    models, had = meter.statistics().models, device.statistics().models
    for name in "ab":
        assert models[name].cost == pytest.approx(had[name].busy_s)
    assert had["b"].busy_s == pytest.approx(3 * had["a"].busy_s)
    for stack in stacks:
        await stack.stop()


def test_repr_shows_running_and_waiting():
    assert repr(si.Device("gpu:0", concurrency=2)) == "Device('gpu:0', running=0/2, waiting=0)"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": ""}, ValueError, "name: expected a name"),
        ({"concurrency": 0}, ValueError, "concurrency: expected"),
        ({"weights": [1]}, TypeError, "weights: expected a mapping"),
        ({"weights": {1: 2}}, TypeError, "weights: expected a mapping of name to weight, got 1"),
        ({"weights": {"a": 0}}, ValueError, r"weights: expected numbers from 0\.001 to 1000"),
        ({"max_wait_s": 0}, ValueError, "max_wait_s: expected"),
    ],
    ids=["name", "concurrency", "weights", "name in weights", "weight", "max_wait_s"],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises((error, TypeError), match=message):
        si.Device(**({"name": "gpu:0"} | arguments))


def test_a_batcher_takes_only_a_device():
    with pytest.raises(TypeError, match="device: expected a Device or None, got 'gpu:0'"):
        si.AdaptiveBatcher(max_batch_size=1, device="gpu:0")


async def two_models(loop, rng, took_s, *, slo_s, rate, weights=None, from_s=0.0, **options):
    """Send random requests to an urgent and a patient model for 3 s; return how many were sent and how many on time.

    Only requests that complete ``from_s`` or more after the start count as on time.
    """
    device = si.Device("core", weights=weights)
    began_s = loop.time()
    models = [Model(name, duration_s=function) for name, function in zip(("urgent", "patient"), took_s, strict=True)]
    services = [
        batcher(loop, device, model, slo_s=limit_s, **options) for model, limit_s in zip(models, slo_s, strict=True)
    ]
    sent, on_time = [0, 0], [0, 0]

    async def call(which):
        sent[which] += 1
        with contextlib.suppress(si.StreamInferError):
            await services[which].call(si.Request(1.0))
            on_time[which] += loop.time() >= began_s + from_s

    async def load(which):
        calls = []
        while loop.time() < began_s + 3.0:
            calls.append(asyncio.ensure_future(call(which)))
            await asyncio.sleep(rng.expovariate(rate))
        await asyncio.gather(*calls)

    await asyncio.gather(load(0), load(1))
    for service in services:
        await service.stop()
    return sent, on_time


@pytest.mark.parametrize("lasts_s", [0.05, 0.15])
@pytest.mark.parametrize("seed", range(3))
def test_model_with_slow_first_batches_is_remeasured(seed, lasts_s):
    """A model whose first batches are slow is measured again.

    Its first batch takes about as long as its requests may wait, and the other model keeps the device busy.
    """

    async def main(loop):
        rng = random.Random(seed)

        def taking(setup_s, row_s):
            def took_s(rows):
                return (setup_s + row_s * rows) * (15 if loop.time() < lasts_s else 1) * rng.lognormvariate(0.0, 0.15)

            return took_s

        took_s = taking(0.001, 0.002), taking(0.001, 0.007)
        return await two_models(loop, rng, took_s, slo_s=(0.05, 0.5), rate=150, weights={"urgent": 2}, from_s=1.0)

    _, on_time = run(main)

    assert on_time[0] > 80  # of about 300 in two seconds
    assert on_time[1] > 180


@pytest.mark.uncompiled
@pytest.mark.parametrize("weight", [2, Fraction(5, 2)], ids=["int", "fraction"])
def test_weights_are_any_numbers(weight):
    """The weights can be of any numeric type, even if the kernel cannot take any of them without conversion."""

    async def main(loop):
        took_s = [lambda rows: 0.001 + 0.002 * rows] * 2
        weights = {"urgent": weight, "patient": weight}
        return await two_models(loop, random.Random(0), took_s, slo_s=(0.05, 0.5), rate=100, weights=weights)

    sent, on_time = run(main)

    assert sum(on_time) > 0.9 * sum(sent)


def test_outliers_do_not_affect_turns():
    """The urgent model keeps its turns although one batch in twenty takes six times as long.

    If turns were planned with these durations, the device would often pass over the urgent model.
    """

    async def main(loop, seed):
        rng = random.Random(seed)

        def took_s(rows):
            return (0.002 + 0.002 * rows) * (6 if rng.random() < 0.05 else 1)

        return await two_models(loop, rng, (took_s, took_s), slo_s=(0.04, 0.2), rate=140, max_batch_size=16)

    shares = []
    for seed in range(5):
        sent, on_time = run(functools.partial(main, seed=seed))
        shares.append(on_time[0] / sent[0])
        assert on_time[1] > 0.9 * sent[1]

    assert sum(shares) / 5 > 0.85
