"""OnnxBackend on the real models of examples/assets: batched results equal single ones."""

import asyncio
import wave

import numpy as np
import pytest

from streaminfer import errors
from streaminfer.backends import OnnxBackend
from streaminfer.request import Batch, Request

STREAMS, CHUNKS = 6, 12


@pytest.fixture(scope="module")
def silero(assets):
    return OnnxBackend(
        assets / "silero_vad_16k_op15.onnx",
        batch_axes={"state": 1, "stateN": 1},
        shared_inputs={"sr": np.array(16000, np.int64)},
        sessions=2,
        warmup=(1, STREAMS),
        example={"input": np.zeros(576, np.float32), "state": np.zeros((2, 128), np.float32)},
    )


@pytest.fixture(scope="module")
def front(assets):
    return OnnxBackend(assets / "blaze_front.onnx", warmup=(1,))


@pytest.fixture(scope="module")
def speech(assets):
    """Return one row of samples per stream, each from another second of the recording."""
    with wave.open(str(assets / "librivox_0870.wav")) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (16000, 2, 1)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    return np.stack([samples[16000 * one : 16000 * one + 512 * CHUNKS] for one in range(STREAMS)])


def chunk(speech, number):
    """Return a row per stream: 64 samples of context and the 512 new samples of a chunk."""
    padded = np.pad(speech, ((0, 0), (64, 0)))
    return np.ascontiguousarray(padded[:, 512 * number : 512 * number + 576])


def requests(inputs, states):
    return [Request({"input": one, "state": state}) for one, state in zip(inputs, states, strict=True)]


async def follow_batched(backend, speech):
    """Return the results of each chunk, with all streams in one batch; states (axis 1) carry over to the next chunk."""
    states = [np.zeros((2, 128), np.float32)] * STREAMS
    answers = []
    for number in range(CHUNKS):
        inputs = chunk(speech, number)
        rows = requests(inputs, states)
        for row in rows:
            backend.validate(row)
        results = await backend.infer(Batch({"input": inputs, "state": np.stack(states, axis=1)}, rows))
        states = [result["stateN"] for result in results]
        answers.append(results)
    return answers


async def follow_single(backend, speech, stream):
    state = np.zeros((2, 128), np.float32)
    answers = []
    for number in range(CHUNKS):
        inputs = chunk(speech, number)[stream]
        batch = Batch({"input": inputs[None], "state": state[:, None]}, requests([inputs], [state]))
        (result,) = await backend.infer(batch)
        state = result["stateN"]
        answers.append(result)
    return answers


def test_batched_streams_equal_single_streams(silero, speech):
    """Recurrent state batched across streams gives the same outputs as each stream alone."""

    async def main():
        await silero.start()
        batched = await follow_batched(silero, speech)
        single = await asyncio.gather(*(follow_single(silero, speech, stream) for stream in range(STREAMS)))
        await silero.stop()
        return batched, single

    batched, single = asyncio.run(main())
    for number in range(CHUNKS):
        for stream in range(STREAMS):
            for name, shape in (("output", (1,)), ("stateN", (2, 128))):
                ours, theirs = batched[number][stream][name], single[stream][number][name]
                assert ours.shape == theirs.shape == shape
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    probabilities = [[row["output"][0] for row in rows] for rows in batched]
    assert np.max(probabilities) > 0.9  # the recording is speech, which the model detects with its state
    assert silero.statistics().rows == CHUNKS * STREAMS * 2


def test_silero_inputs_and_outputs(silero):
    assert dict(silero.batch_axes) == {"input": 0, "state": 1}
    assert [(spec.name, spec.batch_axis) for spec in silero.inputs] == [("input", 0), ("state", 1), ("sr", None)]
    assert [(spec.name, spec.batch_axis) for spec in silero.outputs] == [("output", 0), ("stateN", 1)]
    assert "state float32[2, batch, 128], sr int64[]" in repr(silero)
    assert "<td>input</td><td>sr</td><td>int64[]</td><td>shared</td>" in silero._repr_html_()


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        (np.zeros(576, np.float32), ["a mapping with 'input', 'state'", "float32[576]"]),
        ({"input": np.zeros(576, np.float32)}, ["'state'", "float32[2, 128]", "missing"]),
        (
            {"input": np.zeros(576, np.int16), "state": np.zeros((2, 128), np.float32)},
            ["'input'", "float32[sequence]", "int16[576]"],
        ),
        (
            {"input": np.zeros(576, np.float32), "state": np.zeros((2, 1, 128), np.float32)},
            ["'state'", "float32[2, 128]", "float32[2, 1, 128]", "no batch axis"],
        ),
    ],
)
def test_a_request_that_silero_cannot_read_is_rejected(silero, inputs, parts):
    with pytest.raises(errors.InvalidInput) as caught:
        silero.validate(Request(inputs))
    for part in parts:
        assert part in str(caught.value)


def test_the_axes_must_fit_silero(assets):
    model = assets / "silero_vad_16k_op15.onnx"
    shared = {"sr": np.array(16000, np.int64)}
    with pytest.raises(ValueError, match=r"batch_axes\['state'\]: expected an axis whose size is free, got axis 0"):
        OnnxBackend(model, shared_inputs=shared)
    with pytest.raises(ValueError, match=r"shared_inputs\['sr'\]: expected int64\[\], got int32\[\]"):
        OnnxBackend(model, shared_inputs={"sr": np.array(16000, np.int32)}, batch_axes={"state": 1})
    with pytest.raises(ValueError, match="shared_inputs: expected a value for input 'sr', got none"):
        OnnxBackend(model, batch_axes={"state": 1, "stateN": 1})


def test_faces_batched_equal_faces_alone(front):
    generator = np.random.default_rng(5)
    frames = generator.uniform(-1, 1, (4, 128, 128, 3)).astype(np.float32)

    async def main():
        await front.start()
        rows = [Request(frame) for frame in frames]
        for row in rows:
            front.validate(row)
        together = await front.infer(Batch(frames, rows))
        alone = [(await front.infer(Batch(frame[None], rows[:1])))[0] for frame in frames]
        await front.stop()
        return together, alone

    together, alone = asyncio.run(main())
    assert len(together) == 4
    for ours, theirs in zip(together, alone, strict=True):
        assert list(ours) == ["boxes", "scores"]
        assert ours["boxes"].shape == (896, 16)
        assert ours["scores"].shape == (896, 1)
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-3)


def test_a_frame_of_the_wrong_size_is_rejected(front):
    with pytest.raises(
        errors.InvalidInput, match=r"'input': expected float32\[128, 128, 3\], got float32\[192, 192, 3\]"
    ):
        front.validate(Request(np.zeros((192, 192, 3), np.float32)))
