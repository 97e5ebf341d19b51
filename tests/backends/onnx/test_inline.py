"""OnnxBackend on the event loop: where batches run, life cycle, arguments."""

import asyncio
import threading

import numpy as np
import pytest

from streaminfer import AdaptiveBatcher, Stack, errors
from streaminfer.backends import OnnxBackend
from streaminfer.backends.onnx.session import SessionWorker

F32 = np.float32


def run(main):
    return asyncio.run(asyncio.wait_for(main, 30))


@pytest.fixture
def threads(monkeypatch):
    """Return the list of threads in which sessions run batches."""
    found = []
    infer = SessionWorker.infer

    def note(*arguments, **options):
        found.append(threading.current_thread())
        return infer(*arguments, **options)

    monkeypatch.setattr(SessionWorker, "infer", note)
    return found


def test_live_and_measured_batches_run_on_the_loop(doubling, threads):
    backend = OnnxBackend(doubling, executor="inline", example=np.zeros(3, F32))

    async def main():
        async with Stack(AdaptiveBatcher(max_batch_size=4), backend) as service:
            measured = len(threads)
            rows = await asyncio.gather(*(service(np.full(3, number, F32)) for number in range(8)))
            return measured, [row.tolist() for row in rows]

    measured, rows = run(main())

    assert rows == [[2.0 * number] * 3 for number in range(8)]
    assert 0 < measured < len(threads)
    assert set(threads) == {threading.main_thread()}
    assert backend.statistics().rows == 8


def test_infer_runs_on_the_event_loop_thread(doubling, threads, batch):
    backend = OnnxBackend(doubling, executor="inline")

    async def main():
        return await backend.infer(batch(np.ones((2, 3), F32)))

    assert [row.tolist() for row in run(main())] == [[2.0] * 3] * 2
    assert threads == [threading.main_thread()]


def test_a_stopped_backend_is_closed_until_it_starts(doubling, batch):
    backend = OnnxBackend(doubling, executor="inline")

    async def main():
        await backend.start()
        await backend.stop()
        with pytest.raises(errors.Closed, match="is stopped"):
            backend.infer_now(batch(np.ones((1, 3), F32)))
        await backend.start()
        (row,) = backend.infer_now(batch(np.ones((1, 3), F32)))
        await backend.stop()
        return row.tolist()

    assert run(main()) == [2.0] * 3


def test_a_reload_replaces_the_model(doubling, batch):
    backend = OnnxBackend(doubling, executor="inline")

    async def main():
        await backend.reload(doubling)
        return backend.infer_now(batch(np.ones((1, 3), F32)))

    assert run(main())[0].tolist() == [2.0] * 3
    assert backend.fingerprint_changes() == 1


def test_a_failed_batch_is_counted(doubling, batch):
    backend = OnnxBackend(doubling, executor="inline")

    with pytest.raises(errors.BackendError, match="failed on a batch of 1"):
        backend.infer_now(batch(np.ones((1, 3), np.int64)))

    assert backend.statistics().errors == 1


def test_a_batcher_sees_one_worker_without_a_queue(doubling):
    backend = OnnxBackend(doubling, executor="inline")

    assert backend.capabilities().queued_workers is None
    assert backend.begin_infer is None
    assert repr(backend).endswith("CPUExecutionProvider, inline)")


def test_a_subclass_that_replaces_infer_is_awaited(doubling):
    class Other(OnnxBackend):
        async def infer(self, batch):
            return [0.0 for _ in batch.rows]

    assert Other(doubling, executor="inline").infer_now is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"executor": "gpu"}, "executor: expected one of 'thread', 'inline', got 'gpu'"),
        ({"executor": "inline", "sessions": 2}, "sessions: expected 1 with executor='inline', got 2"),
    ],
    ids=["unknown", "two sessions"],
)
def test_arguments_are_checked(doubling, options, text):
    with pytest.raises(ValueError, match=text):
        OnnxBackend(doubling, **options)
