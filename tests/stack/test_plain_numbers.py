"""NumPy's numbers stay inside the planner: timers, timings, statistics and errors have Python's numbers."""

import asyncio
import enum
import time

import attrs
import numpy as np
import pytest
import uvloop

import streaminfer as si
from streaminfer.testing import VirtualLoop, run

pytestmark = pytest.mark.uncompiled

SIZE = 8


class QueuedModel:
    """Model with its own queue, so that full batches are pipelined, at an instant that the planner chooses."""

    returns_new_arrays = True
    queued_workers = 1

    def __init__(self):
        self.free_at_s = 0.0

    async def infer(self, batch):
        loop = asyncio.get_running_loop()
        began_s = max(loop.time(), self.free_at_s)
        self.free_at_s = began_s + 0.006 + 0.0005 * len(batch)
        await asyncio.sleep(self.free_at_s - loop.time())
        return list(batch.inputs)


def numbers_of_numpy(value, path="", seen=None):
    """Return the paths to NumPy's numbers inside a value, through containers, attrs classes and slots."""
    seen = set() if seen is None else seen
    if isinstance(value, np.generic):
        return [f"{path}: {value!r}"]
    if id(value) in seen or isinstance(value, (str, bytes, int, float, type(None), np.ndarray, enum.Enum)):
        return []
    seen.add(id(value))
    if isinstance(value, dict):
        parts = [
            (f"{path}[{key!r}]", item)
            for pair in value.items()
            for key, item in zip(["key", pair[0]], pair, strict=True)
        ]
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = [(f"{path}[{number}]", item) for number, item in enumerate(value)]
    elif attrs.has(type(value)):
        parts = [(f"{path}.{field.name}", getattr(value, field.name)) for field in attrs.fields(type(value))]
    else:
        names = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        parts = [(f"{path}.{name}", getattr(value, name, None)) for name in names if not name.startswith("__")]
    return [found for part, item in parts for found in numbers_of_numpy(item, part, seen)]


async def overload(service, requests=300):
    """Send more requests than the model can serve; return the responses and the errors."""
    await asyncio.gather(*(service(np.float32(0)) for _ in range(SIZE)), return_exceptions=True)
    asked = []
    for number in range(requests):
        request = si.Request(np.float32(number), priority=number % 2 if number > 200 else 0)
        asked.append(asyncio.ensure_future(service.call(request)))
        await asyncio.sleep(0.0008)
    ended = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, si.DeadlineExceeded) or one.outputs == number for number, one in enumerate(ended)), [
        one for one in ended if isinstance(one, Exception) and not isinstance(one, si.DeadlineExceeded)
    ][:1]
    assert sum(isinstance(one, si.Response) for one in ended) > 100
    return ended


class WatchedLoop(VirtualLoop):
    """Loop that records the types of its timers' instants; uvloop and later Pythons reject NumPy's numbers."""

    kinds = set()  # noqa: RUF012 - shared by all loops

    def call_at(self, when, callback, *args, context=None):
        self.kinds.add(type(when))
        return super().call_at(when, callback, *args, context=context)

    def call_later(self, delay, callback, *args, context=None):
        self.kinds.add(type(delay))
        return super().call_later(delay, callback, *args, context=context)


def layers():
    slo = si.SLO("x", threshold_s=0.05)
    return [si.Telemetry("x", slo=slo), si.AdaptiveBatcher(max_batch_size=SIZE, slo_s=0.05), QueuedModel()]


def test_timings_and_statistics_have_python_numbers(monkeypatch):
    """Timers, timings and statistics have Python's numbers, not those of NumPy."""
    monkeypatch.setattr("streaminfer.testing.virtual_time.VirtualLoop", WatchedLoop)

    async def main(loop):
        telemetry, batcher, model = layers()
        async with si.Stack(telemetry, batcher, model, clock=loop.clock) as service:
            ended = await overload(service)
            prediction = service.admission(si.Request(np.float32(1)), loop.clock())
            seen = service.statistics()
        assert batcher.statistics().pipelined > 0
        return [one for one in ended if isinstance(one, si.Response)], prediction, seen, batcher.statistics()

    responses, prediction, seen, of_batcher = run(main)
    assert {int, float} >= WatchedLoop.kinds > set()
    assert numbers_of_numpy([one.timings for one in responses]) == []
    assert numbers_of_numpy([prediction, seen, of_batcher]) == []


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_real_loop_answers_every_request(new_loop):
    """Each request completes, even if timers fire early because a clock of whole milliseconds lags behind the loop."""

    async def main():
        coarse = lambda: time.monotonic_ns() // 1_000_000 * 1_000_000  # noqa: E731
        async with si.Stack(*layers(), clock=coarse) as service:
            ended = await overload(service)
        return [one.timings for one in ended if isinstance(one, si.Response)]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert numbers_of_numpy(runner.run(main())) == []


def test_simulation_results_have_python_numbers():
    trace = si.batching.arrivals.poisson(500.0, 200, seed=1)
    given = {"slo_s": 0.02, "service_time": si.batching.ServiceTime.affine(0.002, 0.0005), "max_batch_size": SIZE}
    results = [si.batching.simulate(trace, **given, policy=policy) for policy in ("greedy", "lookahead")]
    assert numbers_of_numpy(results) == []
    assert numbers_of_numpy(si.batching.clairvoyant_optimum(trace, **given)) == []


@pytest.mark.parametrize("padding", [{}, {"pad_batch": True}], ids=["plain", "padded"])
def test_learned_values_have_python_numbers(padding):
    learned = si.batching.LearnedServiceTime()
    policy = si.batching.Lookahead(SIZE, learned, padded=(lambda size: 8) if padding else None)
    for number in range(200):
        policy.observe(1 + number % SIZE, 2_000_000, 10_000_000 * number)
    fitted = learned.fitted()
    assert numbers_of_numpy(fitted) == []
    found = [learned.best_batch_size(SIZE), learned.trusted, learned.batches_since(2), learned.deviation]
    found += [policy._model.min_duration_ns, policy._model.size_to_explore(SIZE), policy._model.expected_ns(2)]
    assert numbers_of_numpy(found) == []
