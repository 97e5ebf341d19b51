"""States that grow, with different lengths in one batch."""

import asyncio
import struct
import zlib

import numpy as np
import pytest

import streaminfer as si
from streaminfer.errors import BackendError, InvalidInput
from streaminfer.streams import Growing, StatefulBackend
from streaminfer.testing import ScriptedBackend

pytestmark = pytest.mark.uncompiled

EXAMPLE = {
    "x": np.zeros(2, np.int64),
    "past": np.zeros((2, 1), np.int64),
    "lengths": np.zeros((), np.int64),
}


def attend(batch):
    """Return y, which is x plus the sum of the valid past entries, each times its age, and the past with x appended."""
    x, past, lengths = (batch.inputs[name] for name in ("x", "past", "lengths"))
    size = past.shape[2]
    ages = np.arange(size, 0, -1)
    masked = past * (ages[None, None, :] <= lengths[None, :, None])
    assert np.array_equal(masked, past)  # invalid entries are zeros
    y = (masked * ages).sum(axis=(0, 2)) + x.sum(axis=1)
    return {"y": y, "present": np.concatenate((past, x.T[:, :, None]), axis=2)}


class Alone:
    def __init__(self, most):
        self.past = []
        self.most = most

    def __call__(self, x):
        y = sum(age * 2 * old for age, old in enumerate(reversed(self.past), 1)) + 2 * x
        self.past = [*self.past, x][-self.most :]
        return y


def model(most=5, **settings):
    backend = ScriptedBackend(then=attend, duration_s=0.001, batch_axes={"past": 1}, example=EXAMPLE)
    return StatefulBackend(
        backend, state={"past": "present"}, growing={"past": Growing(-1, most, lengths="lengths")}, **settings
    )


def batch(*rows):
    requests = [si.Request({"x": np.array([x, x])}, stream_id=stream) for stream, x in rows]
    return si.Batch({"x": np.array([[x, x] for _, x in rows])}, requests)


@pytest.mark.parametrize("most", [1, 3, 100])
async def test_streams_of_differing_lengths(loop, most):
    """Each stream sees its own past, cut to max_length, whatever the past of the others in its batch is."""
    backend = model(most)
    rng = np.random.default_rng(most)
    alone = [Alone(most) for _ in range(10)]
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=4), backend, clock=loop.clock) as service:
        for _ in range(12):
            chosen = [int(k) for k in rng.permutation(10)[: rng.integers(1, 10)]]
            values = [int(x) for x in rng.integers(1, 9, len(chosen))]
            outputs = await asyncio.gather(
                *(service(np.array([x, x]), stream_id=k) for k, x in zip(chosen, values, strict=True))
            )
            assert [int(y) for y in outputs] == [alone[k](x) for k, x in zip(chosen, values, strict=True)]
        exported = backend.export_state(3)
        backend.import_state("other", exported)
        assert int(await service(np.array([7, 7]), stream_id="other")) == alone[3](7)


async def test_same_streams_grow_in_place(loop):
    """A batch of the same streams reads their last outputs in place, until these exceed max_length."""
    backend = model(4)
    alone = [Alone(4), Alone(4)]
    await backend.infer(batch(("b", 3)))
    alone[1](3)
    for x in range(6):
        outputs = await backend.infer(batch(("a", x), ("b", x + 1)))
        assert [int(y) for y in outputs] == [alone[0](x), alone[1](x + 1)]
    assert backend.statistics().sticky_batches == 3


async def test_initial_past_and_foreign_records(loop):
    """A stream can start with a past, and a record with a past longer than max_length is rejected."""
    backend = model(8, initial={"past": np.full((2, 2), 5)})
    alone = Alone(8)
    alone.past = [5, 5]
    for x in (1, 2):
        assert int((await backend.infer(batch(("a", x))))[0]) == alone(x)
    with pytest.raises(InvalidInput, match="expected the states"):
        model(3).import_state("a", backend.export_state("a"))


@pytest.mark.parametrize("size", [b"-1", b"1.5", b'"4"', b"null", b"true"])
async def test_forged_length_of_a_record(loop, size):
    """A record with a length that is no count is rejected like any other record that does not fit."""
    backend = model(8)
    await backend.infer(batch(("a", 1)))
    record = backend.export_state("a")
    header = record[18 : record.index(b"}") + 1]
    forged = header.replace(b"[2, 1]", b"[2, %s]" % size)
    body = forged + record[18 + len(header) :]

    assert forged != header
    with pytest.raises(InvalidInput, match="is no size"):
        backend.import_state("b", struct.pack("<8sHII", b"si-state", 1, zlib.crc32(body), len(forged)) + body)


def test_deep_header_of_a_record():
    """A header that is nested too deeply for the parser is rejected as malformed."""
    header = b"[" * 200_000
    record = struct.pack("<8sHII", b"si-state", 1, zlib.crc32(header), len(header)) + header

    with pytest.raises(InvalidInput, match="header of the record is malformed"):
        model(8).import_state("a", record)


def test_wrong_arguments_are_named():
    for options in ({"axis": "a"}, {"axis": True}, {"max_length": 0}, {"lengths": 5}):
        (name,) = options
        with pytest.raises((TypeError, ValueError), match=f"^{name}: expected"):
            Growing(**{"axis": 0, "max_length": 4} | options)


async def test_model_that_drops_entries_is_an_error(loop):
    """A model that drops entries is an error, because the remaining entries of shorter rows would be unknown."""

    class Forgets:
        returns_new_arrays = True

        async def infer(self, batch):
            past = batch.inputs["past"]
            return {"y": past.sum(axis=(1, 2)), "present": past[:, 1:]}

    backend = StatefulBackend(
        Forgets(),
        state={"past": "present"},
        growing={"past": Growing(0, 4)},
        initial={"past": np.ones((2, 1))},
    )
    rows = [si.Request({"x": 1.0}, stream_id="a")]

    with pytest.raises(BackendError, match="output 'present': expected at least the 2 entries of 'past', got 1"):
        await backend.infer(si.Batch({"x": np.ones(1)}, rows))
