"""The voice detector on a real recording: batched results equal those of each stream alone, bit by bit."""

import asyncio
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import streaminfer as si
from streaminfer.errors import InvalidInput
from streaminfer.streams import StatefulBackend

ROOT = Path(__file__).parents[3]
ASSETS = ROOT / "examples" / "assets"
MODEL = ASSETS / "silero_vad_16k_op15.onnx"
F32 = np.float32
RATE = np.array(16000, np.int64)
CHUNKS = 50


@pytest.fixture(scope="module")
def chunks():
    with wave.open(str(ASSETS / "librivox_0870.wav")) as recording:
        samples = np.frombuffer(recording.readframes(recording.getnframes()), np.int16).astype(F32) / 32768
    return samples[: samples.size // 512 * 512].reshape(-1, 512)


@pytest.fixture(scope="module")
def alone(chunks):
    """Return ``alone(first)``, which returns the probabilities of the stream that begins at chunk ``first``."""
    session = onnxruntime.InferenceSession(MODEL)
    known = {}

    def run(first):
        if first not in known:
            state, before, known[first] = np.zeros((2, 1, 128), F32), np.zeros(64, F32), []
            for chunk in np.roll(chunks, -first, axis=0)[:CHUNKS]:
                feed = {"input": np.concatenate((before, chunk))[None], "state": state, "sr": RATE}
                probability, state = session.run(None, feed)
                known[first].append(float(probability[0, 0]))
                before = chunk[-64:]
        return known[first]

    return run


def detector(**settings):
    backend = si.OnnxBackend(
        MODEL,
        batch_axes={"state": 1, "stateN": 1},
        shared_inputs={"sr": RATE},
        example={"input": np.zeros(576, F32), "state": np.zeros((2, 128), F32)},
        **settings,
    )
    return StatefulBackend(backend, state={"state": "stateN"}, context={"input": 64})


@pytest.mark.parametrize("settings", [{}, {"binding": "pageable"}, {"sessions": 2}], ids=["plain", "bound", "two"])
def test_batched_streams_equal_single_ones_bit_by_bit(chunks, alone, settings):
    """Streams of different pace that share batches have the results of each stream alone.

    This holds without and with bound memory, and with two workers.
    """
    backend = detector(**settings)

    async def microphone(service, first):
        rng = np.random.default_rng(first)
        found = []
        for chunk in np.roll(chunks, -first, axis=0)[:CHUNKS]:
            found.append(float((await service(chunk, stream_id=first))[0]))
            for _ in range(rng.integers(0, 4)):
                await asyncio.sleep(0)
        return found

    async def main():
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=16), backend) as service:
            found = await asyncio.gather(*(microphone(service, first) for first in range(0, 60, 3)))
            return found, backend.statistics()

    found, statistics = asyncio.run(main())

    assert found == [alone(first) for first in range(0, 60, 3)]
    assert statistics.gathers > 0


def test_state_of_same_streams_stays_on_the_device(chunks, alone):
    """With bound memory, the output of one run is the input of the next and never becomes a NumPy array."""
    backend = detector(binding="pageable")
    rolled = [np.roll(chunks, -first, axis=0) for first in (0, 9)]

    async def main():
        found = []
        for number in range(10):
            rows = [si.Request(chunk[number], stream_id=k) for k, chunk in enumerate(rolled)]
            batch = si.Batch(np.stack([row.inputs for row in rows]), rows)
            found.append([float(y[0]) for y in await backend.infer(batch)])
        (block,) = backend._store.table.blocks
        state = block.arrays["state"]
        record = backend.export_state(0)
        await backend.stop()
        return found, state, record

    found, state, record = asyncio.run(main())

    assert found == [list(pair) for pair in zip(alone(0)[:10], alone(9)[:10], strict=True)]
    assert not isinstance(state, np.ndarray)
    assert state.shape == (2, 2, 128)
    assert len(record) > 1024


EXPORTED = """
import asyncio, sys
import numpy as np
sys.path.insert(0, {folder!r})
from test_silero import detector
backend = detector()
backend.import_state("moved", open(sys.argv[1], "rb").read())
async def main():
    import streaminfer as si
    chunks = np.load(sys.argv[2])
    async with si.Stack(backend.inner) as _:
        for chunk in chunks:
            batch = si.Batch(chunk[None], [si.Request(chunk, stream_id="moved")])
            print(repr(float((await backend.infer(batch))[0][0])))
asyncio.run(main())
"""


def test_exported_stream_continues_in_another_process(chunks, alone, tmp_path):
    """An exported stream continues in another process with the same results."""
    backend = detector()

    async def main():
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend) as service:
            for chunk in chunks[:20]:
                await service(chunk, stream_id="here")
            return backend.export_state("here")

    (tmp_path / "state").write_bytes(asyncio.run(main()))
    np.save(tmp_path / "chunks.npy", chunks[20:30])

    run = subprocess.run(
        [
            sys.executable,
            "-c",
            EXPORTED.format(folder=str(Path(__file__).parent)),
            tmp_path / "state",
            tmp_path / "chunks.npy",
        ],
        capture_output=True,
        text=True,
        check=True,
    )

    assert [float(line) for line in run.stdout.split()] == alone(0)[20:30]


def test_records_that_do_not_fit_are_rejected(chunks):
    """A record is rejected if it is cut, altered, of another version or of another model."""
    backend = detector()

    async def main():
        batch = si.Batch(chunks[:1], [si.Request(chunks[0], stream_id="a")])
        await backend.infer(batch)
        await backend.inner.stop()
        return backend.export_state("a")

    record = asyncio.run(main())
    backend.import_state("b", bytearray(record))
    assert backend.export_state("b") == record

    import struct
    import zlib

    def altered(old, new):
        body = record[18:].replace(old, new)
        size = len(record[18 : record.index(b"}", 18) + 1].replace(old, new))
        return struct.pack("<8sHII", b"si-state", 1, zlib.crc32(body), size) + body

    for bad, words in [
        (record[:-1], "checksum"),
        (record[:40] + b"x" + record[41:], "checksum"),
        (record[:8] + b"\x02\x00" + record[10:], "version 1"),
        (b"pickle", "expected the bytes that export_state returned"),
        ("text", "expected the bytes"),
        (altered(b'{"finger', b'["finger'), "malformed"),
        (altered(backend.inner.fingerprint.encode(), b"another model"), "of another"),
        (altered(b'"state", "<f4"', b'"state", "<i4"'), "expected the states"),
        (altered(b"}", b"} "), "bytes"),
    ]:
        with pytest.raises(InvalidInput, match=words):
            backend.import_state("b", bad)
    with pytest.raises(InvalidInput, match="stream_id"):
        backend.export_state("never seen")
    with pytest.raises(InvalidInput, match="stream_id"):
        backend.import_state(None, record)
    with pytest.raises(InvalidInput, match="stream_id"):
        backend.import_state([], record)


def test_reload_starts_all_streams_again(chunks, alone):
    """A reload starts all streams again: no state of the old model is an input of the new one, even if shapes agree."""
    backend = detector()

    async def main():
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend) as service:
            for chunk in chunks[:5]:
                await service(chunk, stream_id="a")
            await backend.inner.reload(MODEL)
            with pytest.raises(InvalidInput):
                backend.export_state("a")
            return [float((await service(chunk, stream_id="a"))[0]) for chunk in chunks[:5]]

    assert asyncio.run(main()) == alone(0)[:5]
    assert backend.statistics().restarts == 1


def test_values_are_checked_each_time(chunks):
    """A backend that rejects NaN checks each chunk, also if chunks of its type and shape were valid before."""
    backend = detector(non_finite="reject")

    async def main():
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend) as service:
            await service(chunks[0], stream_id="a")
            with pytest.raises(InvalidInput, match="NaN"):
                await service(np.full(512, np.nan, F32), stream_id="a")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"sound": np.zeros(512, F32)}, r"input 'input': expected an array, got only 'sound': it is missing$"),
        ({}, "input 'input': expected an array, got only an empty mapping: it is missing$"),
        (np.zeros(512), r"got float64\[576\]: .* \(counted with the 64 before, which are the stream's\)$"),
        (np.full(512, np.nan, F32), r"first at \(64,\) \(counted with the 64 before, which are the stream's\)$"),
    ],
    ids=["misnamed", "empty", "dtype", "NaN"],
)
def test_rejection_tells_the_context_from_the_request(inputs, words):
    """The model checks the chunk after the context, so sizes and positions of its errors include the context."""

    async def main():
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), detector(non_finite="reject")) as service:
            with pytest.raises(InvalidInput, match=words):
                await service(inputs, stream_id="a")

    asyncio.run(main())


def test_chunk_of_another_length_is_rejected(chunks):
    """A chunk that does not fit after its context is rejected."""
    backend = detector()

    async def main():
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend) as service:
            with pytest.raises(InvalidInput, match=r"input 'input': expected float32\[512\] \(the 64 before"):
                await service(chunks[0][:100], stream_id="a")
            with pytest.raises(InvalidInput, match="float32"):
                await service(chunks[0].astype(np.float64), stream_id="a")
            with pytest.raises(InvalidInput, match="expected no state"):
                await service({"state": chunks[0]}, stream_id="a")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"stat": "stateN"}, r"state: expected inputs of the model \('input', 'state'\), got 'stat'"),
        ({"state": "next"}, r"state: expected outputs of the model \('output', 'stateN'\), got 'next'"),
    ],
    ids=["input", "output"],
)
def test_misspelt_state_error_lists_the_names(state, message):
    """A misspelt input or output is an error at construction that lists the names of the model."""
    model = si.OnnxBackend(MODEL, batch_axes={"state": 1, "stateN": 1}, shared_inputs={"sr": RATE})

    with pytest.raises(ValueError, match=message):
        StatefulBackend(model, state=state)
