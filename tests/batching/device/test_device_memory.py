"""Models that do not fit together in a device's memory: only loaded models run, and they never exceed the memory."""

import asyncio
import functools
import random

import pytest
from device_calls import ask, call_at_random, settle
from device_calls import batcher as batcher_of

import streaminfer as si
from streaminfer.protocols import ExampleInputs, Residency
from streaminfer.testing import ScriptedBackend


class Model(ScriptedBackend):
    """Scripted backend that can be loaded and unloaded; `taken` is the memory that all models take together."""

    taken = 0
    most = 0

    def __init__(self, name, *steps, size=5, load_s=0.1, **options):
        super().__init__(*steps, **options)
        self.name = name
        self.size = size
        self.load_s = load_s
        self.is_loaded = False
        self.failing = lambda _what: None
        self.residency = Residency(size, self.load, self.unload)
        self.history = []

    async def load(self):
        if self.is_loaded:
            return
        Model.taken += self.size
        Model.most = max(Model.most, Model.taken)
        self.history.append("load")
        try:
            await asyncio.sleep(self.load_s)
            self.failing("load")
        except BaseException:
            Model.taken -= self.size
            raise
        self.is_loaded = True

    async def unload(self):
        assert not self.running
        if self.is_loaded:
            self.failing("unload")
            self.is_loaded = False
            Model.taken -= self.size
            self.history.append("unload")

    running = 0

    async def infer(self, batch):
        assert self.is_loaded
        self.running += 1
        try:
            return await super().infer(batch)
        finally:
            self.running -= 1
            self.history.append("batch")


@pytest.fixture(autouse=True)
def _empty():
    Model.taken = Model.most = 0


batcher = functools.partial(batcher_of, slo_s=1.0)


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("policy", ["lookahead", "greedy"])
@pytest.mark.parametrize("seed", range(3))
async def test_loaded_models_never_exceed_the_memory(loop, concurrency, policy, seed):
    """The loaded models never exceed the memory, whatever is cancelled and whatever fails."""
    rng = random.Random(seed)
    device = si.Device("gpu:0", concurrency=concurrency, memory_bytes=10, max_wait_s=0.5)

    def failing(what):
        if rng.random() < 0.1:
            raise MemoryError(what)

    models = [Model(name, duration_s=0.01, size=size, load_s=0.02) for name, size in (("a", 4), ("b", 6), ("c", 9))]
    for model in models:
        model.failing = failing
    services = [batcher(loop, device, model, policy=policy) for model in models]
    ends = await call_at_random(rng, services, calls=300, pause_s=0.01)

    statistics = device.statistics()
    assert 0 < Model.most <= 10
    assert (statistics.running, statistics.waiting) == (0, ())
    assert set(statistics.loaded) == {model.name for model in models if model.is_loaded}
    for model in models:
        had = statistics.models[model.name]
        assert had.batches > 5
        assert had.loads <= had.batches + model.history.count("load")
    kinds = {type(end) for end in ends}
    assert kinds <= {si.Response, asyncio.CancelledError, si.BackendError, si.DeadlineExceeded, si.Overloaded}
    assert sum(isinstance(end, si.Response) for end in ends) > 150
    for service in services:
        await service.stop()


async def test_a_model_is_loaded_once_for_queued_requests(loop):
    device = si.Device("gpu:0", memory_bytes=9)
    models = [Model(name, duration_s=0.01) for name in "ab"]
    services = [batcher(loop, device, model, slo_s=None) for model in models]

    await settle([ask(service) for _ in range(16) for service in services])

    assert [model.history for model in models] == [["load", "batch", "batch", "unload"], ["load", "batch", "batch"]]
    statistics = device.statistics()
    assert (statistics.memory_bytes, statistics.loaded) == (9, ("b",))
    assert [(had.loads, had.load_s) for had in statistics.models.values()] == [(1, 0.1), (1, 0.1)]
    assert "<th>loads</th><th>load</th>" in device._repr_html_()
    assert "<td>1</td><td>100 ms</td>" in device._repr_html_()


@pytest.mark.parametrize("loaded_by", ["its batcher", "another batcher"])
async def test_model_with_latest_next_batch_is_evicted(loop, loaded_by):
    """The model whose next batch is expected last is evicted, whichever of its batchers had it loaded."""
    device = si.Device("gpu:0", memory_bytes=10)
    often, seldom, new = (Model(name, duration_s=0.001, load_s=0.001) for name in ("often", "seldom", "new"))
    first, second, third = (batcher(loop, device, model) for model in (often, seldom, new))
    if loaded_by == "another batcher":
        await ask(batcher(loop, device, often))
    for number in range(40):
        await ask(first)
        if number % 20 == 0:
            await ask(second)
        await asyncio.sleep(0.01)

    await ask(third)

    assert (often.is_loaded, seldom.is_loaded, new.is_loaded) == (True, False, True)


async def test_overlapping_batches_leave_urgent_model_memory(loop):
    """A model begins no further batch while another model, whose turn it is, needs its memory."""
    device = si.Device("gpu:0", concurrency=2, memory_bytes=9, max_wait_s=10.0)
    many = batcher(loop, device, Model("many", duration_s=0.01), max_batch_size=1, max_in_flight=2, slo_s=60.0)
    urgent = batcher(loop, device, Model("urgent", duration_s=0.01), slo_s=0.3)
    await ask(urgent)  # so that the duration of its load is known
    calls = [ask(many)]
    await asyncio.sleep(0.105)  # the batch of one request runs, and others begin beside it
    calls += [ask(many) for _ in range(100)]

    await ask(urgent)

    assert not [end for end in await settle(calls) if isinstance(end, Exception)]


async def test_failed_load_fails_its_batch_but_not_the_next(loop):
    """A failed load fails the batch that needs it, but not the next batch."""
    device = si.Device("gpu:0", memory_bytes=5)
    model = Model("a", duration_s=0.01)
    service = batcher(loop, device, model)
    model.failing = lambda what: (_ for _ in ()).throw(MemoryError("full"))
    with pytest.raises(si.BackendError, match="a could not be loaded: MemoryError: full"):
        await ask(service)

    model.failing = lambda _what: None

    assert (await ask(service)).outputs == 1.0
    assert device.is_free
    assert device.statistics().models["a"].loads == 2  # the failed load counts


async def test_a_failed_load_fails_only_its_batch(loop):
    """A failed load fails only the rows of its batch; rows that cannot share that batch wait for another load."""
    device = si.Device("gpu:0", memory_bytes=9)
    model = Model("a", then=lambda batch: [len(row.inputs) for row in batch.rows])
    failures = iter([RuntimeError("out of order")])

    def failing(_what):
        for failure in failures:
            raise failure

    model.failing = failing
    service = batcher(loop, device, model, policy="greedy", stack=True)
    calls = [asyncio.ensure_future(service.call(si.Request([1.0] * length))) for length in (1, 2, 1, 2)]

    first, second, third, fourth = await settle(calls)

    assert isinstance(first, si.BackendError)
    assert isinstance(third, si.BackendError)
    assert (second.outputs, fourth.outputs) == (2, 2)


async def test_a_load_continues_after_all_callers_cancel(loop):
    device = si.Device("gpu:0", memory_bytes=5)
    models = [Model(name, duration_s=0.01) for name in "ab"]
    services = [batcher(loop, device, model) for model in models]
    leaving = ask(services[0])
    await asyncio.sleep(0.05)
    leaving.cancel()

    await ask(services[1])

    assert [model.history for model in models] == [["load", "unload"], ["load", "batch"]]
    assert loop.time() == pytest.approx(0.21)


async def test_a_request_expires_during_a_load(loop):
    device = si.Device("gpu:0", memory_bytes=5)
    service = batcher(loop, device, Model("a"), slo_s=0.05)

    with pytest.raises(si.DeadlineExceeded):
        await ask(service)

    assert loop.time() == pytest.approx(0.05)
    await service.stop()
    assert device.is_free


async def test_a_model_larger_than_the_device_is_rejected(loop):
    service = batcher(loop, si.Device("gpu:0", memory_bytes=4), Model("large"))

    with pytest.raises(ValueError, match="memory_bytes: expected at least 5, for large, got 4"):
        await service.start()


async def test_models_without_residency_take_turns(loop):
    """Models without a residency take turns as on a device without a memory limit, and are never loaded."""
    device = si.Device("gpu:0", memory_bytes=5)
    plain = ScriptedBackend(duration_s=0.01)
    services = [batcher(loop, device, model) for model in (Model("a", duration_s=0.01), plain)]

    ends = await settle([ask(service) for service in services for _ in range(20)])

    assert [end.outputs for end in ends] == [1.0] * 40
    assert device.statistics().models["ScriptedBackend"].loads == 0


class Measured(Model):
    """A model that a batcher measures at its start."""

    def example_inputs(self):
        return ExampleInputs(1.0, self.infer)


RENEWED_IDS = ["one object", "one object's methods", "which say another size by now"]


@pytest.mark.parametrize("renewed_bytes", [None, 4, 3], ids=RENEWED_IDS)
async def test_model_with_two_batchers_is_loaded_once(loop, renewed_bytes):
    """A model with two batchers is in memory once.

    One load serves both, and its memory counts once, whether the first batcher has stopped or not.
    """
    device = si.Device("gpu:0", memory_bytes=10)
    model, other = Model("a", size=4), Model("b", size=6)
    first = batcher(loop, device, model, slo_s=None)
    if renewed_bytes is not None:
        model.residency = Residency(renewed_bytes, model.load, model.unload)
    second, third = (batcher(loop, device, one, slo_s=None) for one in (model, other))

    for service in (first, second, third, second, first):
        await ask(service)
    await first.stop()
    for service in (second, third):
        await ask(service)

    assert model.history == ["load", *["batch"] * 5]
    assert other.history == ["load", "batch", "batch"]
    assert sorted(device.statistics().loaded) == ["a#2", "b"]


@pytest.mark.parametrize("renewed_bytes", [None, 4, 3], ids=RENEWED_IDS)
async def test_model_with_two_batchers_is_evicted_once(loop, renewed_bytes):
    """A model with two batchers that has left the memory is absent for both, and one load brings it back for both."""
    device = si.Device("gpu:0", memory_bytes=5)
    model, large = Model("a", size=4), Model("large")
    first = batcher(loop, device, model, slo_s=None)
    if renewed_bytes is not None:
        model.residency = Residency(renewed_bytes, model.load, model.unload)
    second, third = (batcher(loop, device, one, slo_s=None) for one in (model, large))

    for service in (first, second, third, second, first):
        await ask(service)

    assert model.history == ["load", "batch", "batch", "unload", "load", "batch", "batch"]
    assert large.history == ["load", "batch", "unload"]


async def test_models_are_measured_one_after_the_other(loop):
    device = si.Device("gpu:0", memory_bytes=6)
    models = [Measured(name, duration_s=0.01) for name in "abc"]
    services = [batcher(loop, device, model) for model in models]

    await asyncio.gather(*(service.start() for service in services))

    assert Model.most == 5
    assert all(service.calibration.durations_s[0] for service in services)
    assert [model.history.count("load") for model in models] == [1, 1, 1]
    ends = await settle([ask(service) for service in services])
    assert [end.outputs for end in ends] == [1.0] * 3


class Unknown(Measured):
    """Model whose backend knows its example and its largest batch only after a load."""

    def __init__(self, name, **options):
        super().__init__(name, **options)
        self.residency = self.residency._replace(load_at_start=True)

    def example_inputs(self):
        return super().example_inputs() if "load" in self.history else None

    max_batch_size = property(lambda self: 4 if "load" in self.history else None)


async def test_unknown_model_is_loaded_at_start(loop):
    """A model that its backend can describe only after a load is loaded at the start.

    The batcher measures the example and checks the largest batch that the backend offers after the load.
    """
    device = si.Device("gpu:0", memory_bytes=6)
    models = [Unknown(name, duration_s=0.01) for name in "ab"]
    services = [batcher(loop, device, model, max_batch_size=4) for model in models]

    await asyncio.gather(*(service.start() for service in services))

    assert Model.most == 5
    assert all(service.calibration.durations_s[0] for service in services)
    with pytest.raises(ValueError, match="max_batch_size: expected at most 4"):
        await batcher(loop, device, Unknown("c"), max_batch_size=5).start()


async def test_device_holding_all_models_loads_none_at_start(loop):
    """A device without `memory_bytes` holds all its models, so it loads none of them at the start."""
    model = Unknown("a", duration_s=0.01)

    await batcher(loop, si.Device("gpu:0"), model).start()

    assert model.history == []


async def test_a_start_fails_with_the_load(loop):
    device = si.Device("gpu:0", memory_bytes=6)
    model = Measured("a")
    model.failing = lambda what: (_ for _ in ()).throw(MemoryError("full"))

    with pytest.raises(si.BackendError, match="a could not be loaded: MemoryError: full"):
        await batcher(loop, device, model).start()

    assert device.is_free


async def test_start_continues_if_model_was_not_evicted(loop):
    """A start continues if its model was to be evicted but could not be unloaded.

    The model is then still in memory and needs no other load.
    """

    async def unload():
        await asyncio.sleep(0.1)
        raise OSError("busy")

    device = si.Device("gpu:0", memory_bytes=6)
    staying, coming = Measured("a"), Model("b")
    staying.residency = staying.residency._replace(unload=unload)
    services = [batcher(loop, device, model) for model in (staying, coming)]
    await ask(services[0])
    call = ask(services[1])
    await asyncio.sleep(0.05)

    await services[0].start()

    assert device.statistics().loaded == ("a",)
    assert staying.history.count("load") == 1
    assert [str(end) for end in await settle([call])] == ["b could not be loaded: OSError: busy"]


async def test_load_time_is_charged_to_the_loaded_model(loop):
    device, meter = si.Device("gpu:0", memory_bytes=5), si.CostMeter(per_second=1.0)
    stacks = [
        si.Stack(
            meter,
            si.AdaptiveBatcher(max_batch_size=8, device=device, stack=False),
            Model(name, duration_s=0.01, load_s=load_s),
            clock=loop.clock,
        )
        for name, load_s in (("a", 0.1), ("b", 0.2))
    ]
    for stack in stacks:
        await stack.start()

    await asyncio.gather(*(stack(1.0) for stack in stacks))

    models, had = meter.statistics().models, device.statistics().models
    for name, seconds in (("a", 0.11), ("b", 0.21)):
        assert had[name].busy_s + had[name].load_s == pytest.approx(seconds)
        assert models[name].cost == pytest.approx(seconds)
    for stack in stacks:
        await stack.stop()


def test_the_memory_is_checked():
    with pytest.raises(ValueError, match="memory_bytes: expected"):
        si.Device("gpu:0", memory_bytes=0)


async def _nothing():
    """Do nothing: a load or unload that ends at once."""


@pytest.mark.parametrize(
    ("residency", "message"),
    [
        (4 << 30, "residency: expected a Residency, got 4294967296"),
        (Residency(-5, _nothing, _nothing), "residency.memory_bytes: expected a whole number ≥ 1, got -5"),
        (Residency(4, None, _nothing), "residency.load: expected an async function, got None"),
        (Residency(4, _nothing, "leave"), "residency.unload: expected an async function, got 'leave'"),
    ],
    ids=["residency", "memory_bytes", "load", "unload"],
)
async def test_a_residency_is_checked(loop, residency, message):
    model = ScriptedBackend()
    model.residency = residency

    with pytest.raises((TypeError, ValueError), match=message):
        batcher(loop, si.Device("gpu:0", memory_bytes=6), model)


@pytest.mark.parametrize("part", ["load", "unload"])
async def test_a_non_async_residency_function_is_named(loop, part):
    device = si.Device("gpu:0", memory_bytes=6)
    models = [ScriptedBackend(), ScriptedBackend()]
    for model in models:
        model.residency = Residency(4, _nothing, _nothing)._replace(**{part: lambda: None})

    ends = await settle([ask(batcher(loop, device, model)) for model in models])

    assert f"TypeError: residency.{part}: expected an async function, which returns an awaitable" in str(ends[-1])


async def test_start_ends_if_load_error_has_no_message(loop):
    """A start fails with a BackendError even if the message of the load error cannot be read."""

    class Unreadable(Exception):
        def __str__(self):
            raise RuntimeError

    model = Measured("a")
    model.failing = lambda what: (_ for _ in ()).throw(Unreadable())

    with pytest.raises(si.BackendError, match="a could not be loaded: Unreadable: its message cannot be shown"):
        await batcher(loop, si.Device("gpu:0", memory_bytes=6), model).start()


@pytest.mark.parametrize("turns", range(1, 12))
async def test_cancelled_load_leaves_the_device_free(loop, turns):
    """A load that is cancelled together with all other tasks leaves the device free.

    The task that loads the model may not have begun.
    """
    device = si.Device("gpu:0", memory_bytes=9)
    first, second = (batcher(loop, device, Model(name, duration_s=0.01)) for name in "ab")
    calls = [asyncio.ensure_future(service.call(si.Request(1.0))) for service in (first, second)]
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.wait(calls)

    assert (await second.call(si.Request(2.0))).outputs == 2.0
    assert device.statistics().running == 0
    for service in (first, second):
        await service.stop()


async def test_change_during_a_load_holds_for_calibration(loop):
    """Settings that change while the start waits for the load of a model are those of the calibration."""
    device = si.Device("gpu:0", memory_bytes=6)
    layer = si.AdaptiveBatcher(max_batch_size=8, slo_s=1.0, stack=False, device=device, clock=loop.clock)
    service = layer.wrap(Measured("a", duration_s=0.01))
    start = asyncio.ensure_future(service.start())
    await asyncio.sleep(0.05)
    layer.reconfigure(max_batch_size=2)
    await start
    assert list(service.calibration.durations_s[0]) == [1, 2]
