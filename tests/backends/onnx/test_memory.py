"""Models that are unloaded and loaded again, alone and on a device whose memory does not hold both."""

import asyncio
import functools
import gc
import shutil
import weakref

import numpy as np
import pytest

import streaminfer as si
from streaminfer.request import Batch, Request


def on_a_loop(test):
    """Return a test that runs on an event loop in real time, because sessions run in threads."""

    @functools.wraps(test)
    def run(*arguments, **options):
        asyncio.run(asyncio.wait_for(test(*arguments, **options), 30))

    return run


def one(inputs):
    return Batch(inputs[None], [Request(None)])


@on_a_loop
async def test_reloaded_model_responds_as_before_its_unload(assets):
    """An unloaded model returns the same outputs under the same fingerprint once it is loaded again."""
    backend = si.OnnxBackend(assets / "blaze_front.onnx")
    picture = np.random.default_rng(0).uniform(-1, 1, (128, 128, 3)).astype(np.float32)
    before = await backend.infer(one(picture))
    fingerprint, changes = backend.fingerprint, backend.fingerprint_changes()
    session = weakref.ref(backend._serving.model.workers[0]._session)

    await backend.unload()
    await backend.unload()

    gc.collect()
    assert session() is None
    with pytest.raises(
        si.BackendError, match=r"'blaze_front\.onnx': its session is not in memory: await load\(\) first"
    ):
        await backend.infer(one(picture))
    await backend.load()
    await backend.load()
    after = await backend.infer(one(picture))
    for name, value in before[0].items():
        np.testing.assert_array_equal(after[0][name], value)
    assert (backend.fingerprint, backend.fingerprint_changes()) == (fingerprint, changes)
    await backend.stop()


@on_a_loop
async def test_file_replaced_while_unloaded_counts_as_reload(assets, tmp_path):
    """A model file that was replaced while the model was unloaded counts as a reload."""
    path = tmp_path / "model.onnx"
    shutil.copy(assets / "blaze_front.onnx", path)
    backend = si.OnnxBackend(path)
    await backend.unload()
    content = path.read_bytes()
    path.write_bytes(content + b"\x32\x01x")  # `doc_string`: another file, the same graph

    fingerprint = backend.fingerprint
    await backend.load()

    assert backend.fingerprint != fingerprint
    assert backend.fingerprint_changes() == 1
    assert backend.capabilities().residency.memory_bytes == len(content)
    await backend.stop()


@on_a_loop
async def test_a_reload_keeps_an_unloaded_model_unloaded(assets):
    """A reload of an unloaded model does not load it, because its device may have given the memory to another model."""
    backend = si.OnnxBackend(assets / "blaze_front.onnx")
    await backend.unload()

    other = (assets / "blaze_front.onnx").read_bytes() + b"\x32\x01x"  # `doc_string`: another file, the same graph
    await backend.reload(other)

    assert backend.fingerprint_changes() == 1
    picture = np.zeros((128, 128, 3), np.float32)
    with pytest.raises(si.BackendError, match=r"await load\(\) first"):
        await backend.infer(one(picture))
    await backend.load()
    assert await backend.infer(one(picture))
    assert backend.fingerprint_changes() == 1
    await backend.stop()


@on_a_loop
async def test_a_model_whose_file_is_gone_stays_unloaded(assets, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(assets / "blaze_front.onnx", path)
    backend = si.OnnxBackend(path, memory_bytes=1 << 20)
    await backend.unload()
    path.unlink()

    with pytest.raises(FileNotFoundError):
        await backend.load()

    assert backend.capabilities().residency.memory_bytes == 1 << 20
    await backend.stop()


@on_a_loop
async def test_two_models_take_turns_in_memory_for_one(assets):
    """Two models called in turn return the same outputs as alone, and only one has a session at a time."""
    names = {"blaze_front": 128, "blaze_full": 192}
    rng = np.random.default_rng(1)
    pictures = {name: rng.uniform(-1, 1, (size, size, 3)).astype(np.float32) for name, size in names.items()}
    backends = {name: si.OnnxBackend(assets / f"{name}.onnx", example=pictures[name]) for name in names}
    alone = {name: (await backend.infer(one(pictures[name])))[0] for name, backend in backends.items()}
    device = si.Device("cpu:0", memory_bytes=max(it.capabilities().residency.memory_bytes for it in backends.values()))
    stacks = {}
    for name, backend in backends.items():
        backend.name = name
        stacks[name] = si.Stack(si.AdaptiveBatcher(max_batch_size=2, device=device), backend)
    async with stacks["blaze_front"], stacks["blaze_full"]:
        for _ in range(2):
            for name, stack in stacks.items():
                answers = await asyncio.gather(*(stack(pictures[name]) for _ in range(3)))
                for answer in answers:
                    for output, value in alone[name].items():
                        np.testing.assert_allclose(answer[output], value, rtol=1e-3, atol=1e-3)
                assert [it._serving.model.is_loaded for it in backends.values()] == [
                    other == name for other in backends
                ]
                assert device.statistics().loaded == (name,)
    had = device.statistics().models
    assert all(model.loads >= 2 and model.load_s > 0 for model in had.values())
