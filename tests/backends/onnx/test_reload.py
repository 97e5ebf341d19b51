"""Hot swap of an ONNX model: no request is lost, no models are mixed, and a failed swap changes nothing."""

import asyncio
import gc
import itertools
import subprocess
import sys
import threading
import weakref

import attrs
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import streaminfer as si
from streaminfer.backends import OnnxBackend
from streaminfer.backends.onnx.loader import ModelLoader
from streaminfer.batching import AdaptiveBatcher
from streaminfer.caching import EdgeCache
from streaminfer.errors import BackendError, Closed
from streaminfer.request import Batch, Request
from streaminfer.stack import Stack

PATIENCE_S = 30
F32 = np.float32
SWAPS = 50


def scaling(factor, *, size=4, output="y", symbol="batch"):
    """Return a model that computes y = factor * x, of ``[batch, size]``."""
    value = np.full(size, factor, F32)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "weights"], [output])],
        "scaling",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (symbol, size))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, (symbol, size))],
        initializer=[numpy_helper.from_array(value, "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def ones(rows=1, size=4):
    return Batch(np.ones((rows, size), F32), [Request(None) for _ in range(rows)])


async def factor_of(backend):
    """Return the factor by which the backend's model multiplies."""
    return float((await backend.infer(ones()))[0][0])


def run(main):
    return asyncio.run(asyncio.wait_for(main, PATIENCE_S))


class Held(onnxruntime.InferenceSession):
    """Session whose runs wait until the test lets them continue."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.began, self.goes_on = threading.Event(), threading.Event()
        self.goes_on.set()

    def run(self, names, feed, options):
        outputs = super().run(names, feed, options)
        self.began.set()
        assert self.goes_on.wait(PATIENCE_S)
        return outputs


@pytest.fixture
def sessions(monkeypatch):
    """Return the list of sessions that are made; the test can hold their runs."""
    made = []

    def make(*arguments, **keywords):
        made.append(Held(*arguments, **keywords))
        return made[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", make)
    return made


def test_a_reload_changes_answers_fingerprint_and_name(tmp_path):
    path = tmp_path / "second.onnx"
    path.write_bytes(scaling(3.0))

    async def main():
        backend = OnnxBackend(scaling(2.0), sessions=2, warmup=[1])
        await backend.start()
        before = backend.fingerprint
        assert (await factor_of(backend), backend.fingerprint_changes()) == (2.0, 0)
        await backend.reload(path)
        assert (await factor_of(backend), backend.fingerprint_changes()) == (3.0, 1)
        assert before != backend.fingerprint == OnnxBackend(path).fingerprint
        assert "'second.onnx'" in repr(backend)
        assert "second.onnx" in backend._repr_html_()
        path.write_bytes(scaling(4.0))
        await backend.reload(path)  # the same path is read again
        assert await factor_of(backend) == 4.0
        await backend.stop()

    run(main())


def test_running_batch_ends_on_the_model_that_began_it(sessions):
    """During a reload, a running batch ends on the old model, and a queued batch runs on the new one."""

    async def main():
        backend = OnnxBackend(scaling(2.0))
        sessions[0].goes_on.clear()
        running, queued = (asyncio.create_task(factor_of(backend)) for _ in range(2))
        await asyncio.to_thread(sessions[0].began.wait)
        await backend.reload(scaling(3.0))
        assert not running.done()
        sessions[0].goes_on.set()
        assert (await running, await queued) == (2.0, 3.0)
        await backend.stop()

    run(main())


def test_new_model_runs_each_shape_before_it_serves(sessions):
    """A reload runs each known shape on each worker of the new model before that model serves.

    The old model serves meanwhile.
    """
    shapes = []

    async def main():
        backend = OnnxBackend(scaling(2.0), sessions=2, warmup=[5])
        for rows in (3, 1, 3):
            await backend.infer(ones(rows))
        await backend.reload(scaling(3.0))
        assert sorted(shapes) == [(1, 4), (1, 4), (3, 4), (3, 4), (5, 4), (5, 4)]
        assert await factor_of(backend) == 3.0
        await backend.stop()

    real = Held.run

    def recorded(self, names, feed, options):
        if self is not sessions[0]:
            shapes.append(feed["x"].shape)
            assert threading.current_thread() is not threading.main_thread()
        return real(self, names, feed, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Held, "run", recorded)
        run(main())


def test_shape_first_run_during_reload():
    """A shape may run for the first time during a reload.

    The worker threads add it to their record of shapes while the reload reads the record.
    """

    class Name(str):
        __slots__ = ()

        def __hash__(self):
            if noted:
                shapes[(("x", (next(sizes), 4), np.dtype(F32)),)] = None  # like a thread after the run
            return super().__hash__()

    noted = False
    sizes = itertools.count(10)
    backend = OnnxBackend(scaling(2.0))
    shapes = backend._serving.model.workers[0].shapes
    for rows in (1, 2):
        shapes[((Name("x"), (rows, 4), np.dtype(F32)),)] = None
    noted = True

    run(backend.reload(scaling(3.0)))

    assert backend.fingerprint_changes() == 1


def test_replacement_worker_has_its_own_shape_memory():
    """A worker that replaces a hung one copies its record of shapes instead of sharing it.

    The hung thread may still add a shape to its record.
    """
    worker = OnnxBackend(scaling(2.0))._serving.model.workers[0]
    worker.shapes[(("x", (3, 4), np.dtype(F32)),)] = None

    renewed = worker.renew()

    assert renewed.shapes == worker.shapes
    assert renewed.shapes is not worker.shapes


DIFFERENT = [
    (scaling(3.0, size=5), r"inputs x float32\[batch, 4\], got \d+ bytes with x float32\[batch, 5\]"),
    (scaling(3.0, output="z"), r"outputs y float32\[batch, 4\], got \d+ bytes with z float32\[batch, 4\]"),
    (b"garbage", "expected an ONNX model that onnxruntime loads, got 7 bytes"),
]


@pytest.mark.parametrize(("source", "what"), DIFFERENT, ids=["inputs", "outputs", "no model"])
def test_a_failed_reload_keeps_the_old_model(source, what):
    async def main():
        backend = OnnxBackend(scaling(2.0))
        before = backend.fingerprint
        with pytest.raises(ValueError, match=what):
            await backend.reload(source)
        with pytest.raises(FileNotFoundError, match="path_or_bytes"):
            await backend.reload("/nowhere/model.onnx")
        with pytest.raises(TypeError, match="path_or_bytes"):
            await backend.reload(3)
        assert await factor_of(backend) == 2.0
        assert (backend.fingerprint, backend.fingerprint_changes()) == (before, 0)
        await backend.reload(scaling(3.0, symbol="n"))  # names of free sizes do not matter
        assert await factor_of(backend) == 3.0
        await backend.stop()

    run(main())


def gathering(table, first=1):
    """Return a model that computes y = table[x - first], and fails if the index is outside the table."""
    graph = helper.make_graph(
        [helper.make_node("Sub", ["x", "first"], ["i"]), helper.make_node("Gather", ["table", "i"], ["y"])],
        "gathering",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ("batch",))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch",))],
        initializer=[
            numpy_helper.from_array(np.array(table, F32), "table"),
            numpy_helper.from_array(np.array(first, np.int64), "first"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def test_model_failing_where_old_one_runs_is_rejected():
    """A reload is rejected if the new model fails on a batch shape that the old model can run."""

    async def main():
        backend = OnnxBackend(gathering([10.0, 20.0]))
        batch = Batch(np.array([2, 1]), [Request(None), Request(None)])
        assert [float(row) for row in await backend.infer(batch)] == [20.0, 10.0]
        before = backend.fingerprint
        with pytest.raises(BackendError, match=r"failed on a batch of 2"):
            await backend.reload(gathering([]))  # zeros become -1, an index of the old table only
        assert backend.fingerprint == before
        assert [float(row) for row in await backend.infer(batch)] == [20.0, 10.0]
        await backend.stop()

    run(main())


def test_failure_counts_if_old_model_is_unloaded():
    """A new model that fails its trial run is rejected if the old model is not in memory.

    Without the old model, the reload cannot find out that the old model fails on zeros too.
    """

    async def main():
        backend = OnnxBackend(gathering([10.0, 20.0], first=3))
        batch = Batch(np.array([3]), [Request(None)])
        await backend.infer(batch)
        await backend.unload()
        before = backend.fingerprint
        with pytest.raises(BackendError, match=r"failed on a batch of 1"):
            await backend.reload(gathering([30.0, 40.0], first=5))
        assert backend.fingerprint == before
        await backend.load()
        assert float((await backend.infer(batch))[0]) == 10.0
        await backend.stop()

    run(main())


def test_cuda_graphs_stay_with_their_thread():
    async def main():
        backend = OnnxBackend(scaling(2.0))
        backend._serving.model = attrs.evolve(backend._serving.model, has_graphs=True)
        with pytest.raises(ValueError, match="CUDA graphs cannot be replaced while it serves"):
            await backend.reload(scaling(3.0))

    run(main())


def test_zeros_rejected_by_both_models_are_ignored():
    """If the old model rejects zeros too, the new model's failure on them does not prevent the reload.

    A model need not accept zeros: here they are indices before the table.
    """

    async def main():
        backend = OnnxBackend(gathering([10.0, 20.0], first=3))
        batch = Batch(np.array([3]), [Request(None)])
        assert float((await backend.infer(batch))[0]) == 10.0
        await backend.reload(gathering([30.0, 40.0], first=3))
        assert float((await backend.infer(batch))[0]) == 30.0
        await backend.stop()

    run(main())


def test_reload_while_stopped_applies_to_next_start():
    """A reload before the start, or after a stop, sets the model that the next start serves."""

    async def main():
        backend = OnnxBackend(scaling(2.0))
        await backend.reload(scaling(3.0))
        await backend.start()
        assert await factor_of(backend) == 3.0
        await backend.stop()
        await backend.reload(scaling(4.0))
        with pytest.raises(Closed):
            await backend.infer(ones())
        await backend.start()
        assert await factor_of(backend) == 4.0
        await backend.stop()

    run(main())


def test_a_reload_keeps_the_first_shared_inputs(build_model):
    """A reload uses the shared inputs of the constructor, even if the caller has since changed its array."""
    model = build_model(
        [helper.make_node("Mul", ["x", "factor"], ["y"])],
        [("x", TensorProto.FLOAT, ("batch", 4)), ("factor", TensorProto.FLOAT, ())],
        [("y", TensorProto.FLOAT, ("batch", 4))],
    )
    factor = np.array(2, F32)

    async def main():
        backend = OnnxBackend(model, shared_inputs={"factor": factor})
        factor[...] = 5
        await backend.reload(model)
        assert await factor_of(backend) == 2.0
        await backend.stop()

    run(main())


def test_reloads_take_effect_in_call_order(monkeypatch):
    """Reloads load and take effect in the order of their calls; a cancelled reload does neither."""
    load = ModelLoader.load
    loads = []

    def slow(self, source, check):
        loads.append(source)
        return load(self, source, check)

    async def main():
        backend = OnnxBackend(scaling(1.0))
        monkeypatch.setattr(ModelLoader, "load", slow)
        models = [scaling(float(factor)) for factor in range(2, 8)]
        tasks = [asyncio.create_task(backend.reload(model)) for model in models]
        await asyncio.sleep(0)
        tasks[3].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in outcomes] == [type(None)] * 3 + [asyncio.CancelledError] + [type(None)] * 2
        assert loads == models[:3] + models[4:]
        assert (await factor_of(backend), backend.fingerprint_changes()) == (7.0, 5)
        await backend.stop()

    run(main())


def test_reload_cancelled_while_loading_has_no_effect(monkeypatch):
    """A reload that is cancelled while it loads has no effect."""
    began, goes_on = threading.Event(), threading.Event()
    load = ModelLoader.load

    def held(self, source, check):
        began.set()
        assert goes_on.wait(PATIENCE_S)
        return load(self, source, check)

    async def main():
        backend = OnnxBackend(scaling(2.0))
        monkeypatch.setattr(ModelLoader, "load", held)
        task = asyncio.create_task(backend.reload(scaling(3.0)))
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        goes_on.set()
        await backend.reload(scaling(4.0))
        assert (await factor_of(backend), backend.fingerprint_changes()) == (4.0, 1)
        await backend.stop()

    run(main())


@pytest.mark.parametrize(
    "expected",
    [["session"], ["session", "warm-up"], ["session", "warm-up", "warm-up", "shape"]],
    ids=["session", "warm-up", "shape"],
)
def test_a_cancelled_reload_stops_after_its_step(monkeypatch, expected):
    """The thread of a cancelled reload completes its current step, and then makes no session and runs no batch."""
    began, goes_on, thread = threading.Event(), threading.Event(), []
    steps = []

    def hold(name):
        steps.append(name)
        if name == expected[-1]:
            thread.append(threading.current_thread())
            began.set()
            assert goes_on.wait(PATIENCE_S)

    class Slow(onnxruntime.InferenceSession):
        def __init__(self, *arguments, **keywords):
            hold("session")
            super().__init__(*arguments, **keywords)

        def run(self, names, feed, options=None):
            hold("warm-up" if feed["x"].shape[0] == 7 else "shape")
            return super().run(names, feed, options)

    async def main():
        backend = OnnxBackend(scaling(2.0), warmup=(7, 7), session_options=onnxruntime.SessionOptions())
        for rows in (1, 2):
            await backend.infer(ones(rows))
        monkeypatch.setattr(onnxruntime, "InferenceSession", Slow)
        reloading = asyncio.create_task(backend.reload(scaling(3.0)))
        await asyncio.to_thread(began.wait)
        reloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reloading
        goes_on.set()
        await asyncio.to_thread(thread[0].join)
        assert await factor_of(backend) == 2.0
        await backend.stop()

    run(main())
    assert steps == expected


def test_the_interpreter_ends_though_a_reload_hangs(tmp_path):
    (tmp_path / "model.onnx").write_bytes(scaling(2.0))
    program = f"""
import asyncio, threading
import onnxruntime
from streaminfer.backends import OnnxBackend
from streaminfer.backends import worker_pool
worker_pool.EXIT_LIMIT_S = 0.1
path = {str(tmp_path / "model.onnx")!r}
backend = OnnxBackend(path)
begun = threading.Event()
def hang(*arguments, **keywords):
    begun.set()
    threading.Event().wait()
onnxruntime.InferenceSession = hang
async def main():
    reload = asyncio.ensure_future(backend.reload(path))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    reload.cancel()
    try:
        await reload
    except asyncio.CancelledError:
        print("cancelled", backend.fingerprint_changes())
asyncio.run(main())
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert ended.stdout == "cancelled 0\n"


def test_forked_process_ignores_reload_of_its_parent():
    """A forked process does not wait for a reload that its parent has begun.

    A reload in the forked process makes sessions of its own.
    """

    async def main():
        backend = OnnxBackend(scaling(2.0))
        parents = backend._serving.turn()
        await parents.__aenter__()
        backend._threads.forget()  # what happens in a forked process
        with pytest.raises(BackendError, match="before this process was forked"):
            await factor_of(backend)
        await backend.reload(scaling(3.0))
        assert await factor_of(backend) == 3.0
        await parents.__aexit__(None, None, None)

    run(main())


def test_text_is_warmed_up_with_text(identity):
    async def main():
        backend = OnnxBackend(identity(TensorProto.STRING, ["batch"]), batch_axes={"y": 0})
        batch = Batch(np.array(["a", "b"], object), [Request(None), Request(None)])
        assert list(await backend.infer(batch)) == ["a", "b"]
        await backend.reload(identity(TensorProto.STRING, ["n"]))
        assert list(backend._serving.model.workers[0].shapes) == [(("x", (2,), np.dtype(object)),)]
        await backend.stop()

    run(main())


def test_reloads_from_several_event_loops():
    backend = OnnxBackend(scaling(1.0))
    threads = [threading.Thread(target=lambda: run(backend.reload(scaling(2.0)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert backend.fingerprint_changes() == 4


def test_batch_of_several_runs_survives_unload(sessions):
    """A batch of several runs completes even if its model is unloaded meanwhile.

    A model that runs one row at a time keeps its session until the last row of the batch.
    """

    async def main():
        backend = OnnxBackend(scaling(2.0, symbol=1))
        (session,) = sessions
        session.goes_on.clear()
        task = asyncio.create_task(backend.infer(ones(3)))
        await asyncio.to_thread(session.began.wait, PATIENCE_S)
        await backend.unload()
        session.goes_on.set()
        assert [float(row[0]) for row in await task] == [2.0, 2.0, 2.0]
        await backend.stop()

    run(main())


def test_an_old_model_is_dropped_with_its_last_batch(sessions):
    async def main():
        backend = OnnxBackend(scaling(2.0))
        await backend.infer(ones())
        old = weakref.ref(sessions.pop())
        await backend.reload(scaling(3.0))
        await backend.infer(ones())
        gc.collect()
        assert old() is None
        await backend.stop()

    run(main())


def test_model_without_fingerprint_is_rejected(tmp_path, monkeypatch):
    """A reload rejects a model without a fingerprint if the current model has one."""
    monkeypatch.chdir(tmp_path)
    onnx.save(
        onnx.ModelProto.FromString(scaling(3.0, size=64)),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )

    async def main():
        backend = OnnxBackend(scaling(2.0, size=64))
        with pytest.raises(ValueError, match="expected the path of a model that has external files"):
            await backend.reload((tmp_path / "model.onnx").read_bytes())
        await backend.reload(tmp_path / "model.onnx")
        assert float((await backend.infer(ones(size=64)))[0][0]) == 3.0
        await backend.stop()

    run(main())


def test_fifty_swaps_under_load_lose_and_mix_nothing():
    """Fifty swaps under load lose no request and mix no models.

    Each response is of a model that served during the call, and each stored response is of the model in its key.
    """
    models = {factor: scaling(float(factor)) for factor in range(2, 2 + SWAPS)}
    marks = {OnnxBackend(model).fingerprint: factor for factor, model in models.items()}
    kept = {}

    async def main():
        backend = OnnxBackend(scaling(1.0), sessions=2)
        marks[backend.fingerprint] = 1
        cache = EdgeCache()
        lost, wrong, answered = [], [], 0
        done, progress = asyncio.Event(), asyncio.Event()

        async with Stack(cache, AdaptiveBatcher(max_batch_size=8, max_in_flight=2), backend) as stack:
            keys = {}

            async def load(client):
                nonlocal answered
                number = 0
                while not done.is_set():
                    number += 1
                    inputs = np.array([1, client, number % 7, number], F32)
                    before = backend.fingerprint_changes() + 1
                    keys[stack.inner.key_of(Request(inputs))] = marks[backend.fingerprint]
                    try:
                        factor = float((await stack(inputs))[0])
                    except si.StreamInferError as error:
                        lost.append(error)
                        progress.set()
                        continue
                    answered += 1
                    progress.set()
                    if not before <= factor <= backend.fingerprint_changes() + 1:
                        wrong.append((before, factor))

            clients = [asyncio.create_task(load(client)) for client in range(12)]
            for model in models.values():
                await backend.reload(model)
                enough = answered + 40  # so that some requests begin and end on this model
                while answered < enough and not lost:
                    progress.clear()
                    await progress.wait()
            done.set()
            await asyncio.gather(*clients)
            kept.update((key, float(value[0])) for key, value in cache.items())
        assert (lost, wrong) == ([], [])
        assert answered > SWAPS
        assert len(kept) > SWAPS
        assert [(keys[key], factor) for key, factor in kept.items() if keys[key] != factor] == []

    asyncio.run(asyncio.wait_for(main(), 4 * PATIENCE_S))


def test_old_response_is_not_stored_under_new_key(sessions):
    """A response of the old model is not stored under the fingerprint of the new one.

    It is not stored either if the model changes and changes back meanwhile: the cache compares the number of changes,
    not the fingerprint.
    """

    async def main():
        first, second = scaling(2.0), scaling(3.0)
        backend = OnnxBackend(first)
        cache = EdgeCache()
        async with Stack(cache, AdaptiveBatcher(max_batch_size=4), backend) as stack:
            inputs = np.ones(4, F32)
            sessions[0].goes_on.clear()
            sessions[0].began.clear()
            running = asyncio.create_task(stack(inputs))
            await asyncio.to_thread(sessions[0].began.wait)
            queued = asyncio.create_task(stack(2 * inputs))
            await asyncio.sleep(0)
            await backend.reload(second)
            sessions[0].goes_on.set()
            assert (float((await running)[0]), float((await queued)[0])) == (2.0, 6.0)
            assert len(cache) == 0
            await backend.reload(first)
            assert float((await stack(2 * inputs))[0]) == 4.0
            assert len(cache) == 1

            sessions[-1].goes_on.clear()
            sessions[-1].began.clear()
            running = asyncio.create_task(stack(5 * inputs))
            await asyncio.to_thread(sessions[-1].began.wait)
            queued = asyncio.create_task(stack(6 * inputs))
            await asyncio.sleep(0)
            held = sessions[-1]
            await backend.reload(second)
            held.goes_on.set()
            assert float((await queued)[0]) == 18.0
            await backend.reload(first)
            assert float((await running)[0]) == 10.0
            assert len(cache) == 1

    run(main())


def test_a_later_start_measures_the_new_model_again():
    async def main():
        backend = OnnxBackend(scaling(2.0))
        batcher = AdaptiveBatcher(max_batch_size=4)
        stack = Stack(batcher, backend)
        async with stack:
            observed = batcher.service_time.observations
        async with stack:
            assert batcher.service_time.observations == observed
        await backend.reload(scaling(3.0))
        async with stack:
            assert batcher.service_time.observations > observed

    run(main())


# ---------------------------------------------------------------------------------------------- shared weights

MEMORY = """
import sys
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from streaminfer.backends import OnnxBackend

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) / 1024

weights = [numpy_helper.from_array(np.full((2000, 2000), 0.5, np.float32), f"w{i}") for i in range(3)]
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x" if i == 0 else f"h{i}", f"w{i}"], [f"h{i + 1}" if i < 2 else "y"]) for i in range(3)],
    "large",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", 2000))],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 2000))],
    initializer=weights,
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
OnnxBackend(model)
before = resident()
backend = OnnxBackend(model, sessions=int(sys.argv[1]))
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_eight_sessions_need_the_memory_of_one():
    """Eight sessions share one copy of the weights, which are 48 MB; eight copies would be 340 MB more."""
    grown = [
        float(subprocess.run([sys.executable, "-c", MEMORY, count], check=True, capture_output=True, text=True).stdout)
        for count in ("1", "8")
    ]
    assert grown[1] < grown[0] + 100
