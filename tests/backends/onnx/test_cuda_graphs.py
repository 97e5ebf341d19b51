"""CUDA graphs: one per shape, recorded in warm-up runs only, in a session on the CPU that claims to support them.

The tests need no GPU: they check which runs the backend tells onnxruntime to record and to replay, in which memory.
"""

import asyncio
import threading

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto as Tensor

import streaminfer as si
from streaminfer.backends import OnnxBackend, cuda_provider

F32 = np.float32


class GraphSession(onnxruntime.InferenceSession):
    """Session on the CPU that records for each run what a session with CUDA graphs would do.

    Attributes:
        log: of ("recorded", rows), ("replayed", rows) and ("plain", rows).
    """

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.log = []
        self.graphs = {}

    def get_provider_options(self):
        return {"CUDAExecutionProvider": {"enable_cuda_graph": "1"}}

    def run_with_iobinding(self, iobinding, run_options=None):
        graph_id = run_options.get_run_config_entry("gpu_graph_id")
        super().run_with_iobinding(iobinding, run_options)
        (output,) = iobinding.get_outputs()
        place = (threading.current_thread(), graph_id)  # onnxruntime keeps graphs by thread
        what = "plain" if graph_id == "-1" else "replayed" if place in self.graphs else "recorded"
        if what == "recorded":
            self.graphs[place] = output.data_ptr()
        if what == "replayed":
            assert self.graphs[place] == output.data_ptr()  # a replay writes to the memory of the recorded run
        self.log.append((what, output.shape()[0]))


@pytest.fixture
def graphs(monkeypatch):
    """Replace onnxruntime's sessions by sessions that claim to record CUDA graphs."""
    monkeypatch.setattr(onnxruntime, "InferenceSession", GraphSession)


def session_of(backend):
    return backend._serving.model.workers[0]._session


def run(main):
    return asyncio.run(asyncio.wait_for(main(), 30))


def test_warm_up_records_and_batches_replay(graphs, doubling, batch, ramp):
    """Each size of `warmup` has a graph; a batch of another size runs without a graph and records none."""
    backend = OnnxBackend(doubling, binding="pageable", warmup=[1, 4], example=ramp(3))
    log = session_of(backend).log

    async def main():
        await backend.start()
        assert log == [("recorded", 1), ("recorded", 4), ("replayed", 1), ("replayed", 4)]
        log.clear()
        for rows in (4, 1, 3, 3, 4):
            assert np.array_equal(np.stack(await backend.infer(batch(ramp(rows, 3)))), ramp(rows, 3) * 2)
        assert log == [("replayed", 4), ("replayed", 1), ("plain", 3), ("plain", 3), ("replayed", 4)]
        await backend.stop()

    run(main)
    ids = [graph_id for _, graph_id in session_of(backend).graphs]
    assert len(set(ids)) == 2


def test_a_batcher_records_its_preferred_sizes(graphs, identity, ramp):
    """The sizes that a batcher measures at its start have graphs, so that it learns replays and runs only replays."""
    backend = OnnxBackend(identity(Tensor.FLOAT, ["batch", 3]), binding="pageable")
    batcher = si.AdaptiveBatcher(max_batch_size=8, preferred_sizes=[2, 8])
    log = session_of(backend).log

    async def main():
        async with si.Stack(batcher, backend) as stack:
            assert {size for what, size in log if what == "recorded"} == {2, 8}
            assert set(batcher.statistics().calibration.durations_s[0]) == {2, 8}
            log.clear()
            for count in (1, 5, 8):
                answers = await asyncio.gather(*map(stack, ramp(count, 3)))
                assert np.array_equal(np.stack(answers), ramp(count, 3))
            assert {what for what, _ in log} == {"replayed"}
            assert {size for _, size in log} <= {2, 8}

    run(main)


def test_new_threads_record_again_at_the_start(graphs, identity, batch, ramp):
    """A start in new threads records the graphs again, so that the first live batch is a replay."""
    backend = OnnxBackend(identity(Tensor.FLOAT, ["batch", 3]), binding="pageable")
    log = session_of(backend).log

    async def main():
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=2), backend):
            pass
        log.clear()
        await backend.start()
        assert sorted(log) == [("recorded", 1), ("recorded", 2)]
        log.clear()
        await backend.infer(batch(ramp(2, 3)))
        assert log == [("replayed", 2)]
        await backend.stop()

    run(main)


def test_memory_of_graphs_is_kept(graphs, doubling, batch, ramp, monkeypatch):
    """The memory to which a graph writes is kept while batches of many other shapes run."""
    monkeypatch.setattr("streaminfer.backends.onnx.binding._MAX_SLOTS", 2)
    backend = OnnxBackend(doubling, binding="pageable", warmup=[1], example=ramp(3))

    async def main():
        await backend.start()
        for width in (4, 5, 6, 7):
            await backend.infer(batch(ramp(1, width)))
        slots = backend._serving.model.workers[0]._bound._slots
        assert list(slots) == [((1, 3),), ((1, 6),), ((1, 7),)]
        await backend.infer(batch(ramp(1, 3)))
        assert session_of(backend).log[-1] == ("replayed", 1)
        await backend.stop()

    run(main)


def test_replaced_worker_uses_no_graphs_after_a_hang(graphs, doubling, ramp):
    """A worker that replaces a hung one runs without graphs.

    Its memory is different, and the run that hangs may still use the graph of its thread.
    """
    backend = OnnxBackend(doubling, binding="pageable", warmup=[1], example=ramp(3))
    worker = backend._serving.model.workers[0]
    worker.warm()

    worker.renew().warm()

    assert session_of(backend).log == [("recorded", 1), ("replayed", 1), ("plain", 1)]


def test_all_runs_of_a_batch_use_one_graph(graphs, identity, batch, ramp, capfd):
    """A model for one row uses one graph for all runs of a batch, and onnxruntime prints no warning about graphs."""
    backend = OnnxBackend(identity(Tensor.FLOAT, [1, 3]), binding="pageable", warmup=[4])

    async def main():
        await backend.start()
        answers = await backend.infer(batch(ramp(3, 3)))
        await backend.stop()
        return answers

    assert np.array_equal(np.stack(run(main)), ramp(3, 3))
    assert session_of(backend).log == [("recorded", 1), *[("replayed", 1)] * 4]
    assert "gpu_graph_id" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "binding: expected 'pinned' or 'pageable' with enable_cuda_graph, got 'off'"),
        ({"binding": "pageable", "sessions": 2}, "sessions: expected 1 with enable_cuda_graph"),
    ],
    ids=["binding", "sessions"],
)
def test_settings_that_graphs_cannot_use_are_rejected(graphs, doubling, settings, words):
    """The constructor rejects settings in which a graph would write to memory that is used elsewhere."""
    with pytest.raises(ValueError, match=words):
        OnnxBackend(doubling, **settings)


def test_graphs_need_outputs_of_stated_sizes(graphs, identity):
    """An output without a declared size is rejected with graphs, because its memory cannot be kept."""
    with pytest.raises(
        ValueError, match=r"outputs: expected those whose sizes the model states.*y float32\[batch, m\]"
    ):
        OnnxBackend(identity(Tensor.FLOAT, ["batch", "n"], ["batch", "m"]), binding="pageable")


def test_the_option_and_a_machine_without_a_gpu(doubling):
    """`cuda_provider` sets the option for graphs; without CUDA's provider, the constructor says how to install it."""
    assert cuda_provider(cuda_graph=True)[1]["enable_cuda_graph"] == "1"
    assert "enable_cuda_graph" not in cuda_provider()[1]
    with pytest.raises(ValueError, match=r"got 'CUDAExecutionProvider'.*pip install onnxruntime-gpu"):
        OnnxBackend(doubling, providers=[cuda_provider(cuda_graph=True)])
