"""Shared memory after a change of the model: other types, more bytes, arrays without elements."""

import asyncio
import mmap
import os
import sys

import numpy as np
import pytest
from triton_settings import make_settings

from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.messages import InferResponse, SharedMemoryRef, Tensor
from streaminfer.backends.triton.model import Server, read_model
from streaminfer.backends.triton.request_splitter import RequestSplitter
from streaminfer.backends.triton.session import CallCounts, Session
from streaminfer.backends.triton.shared_memory import region_pool
from streaminfer.errors import BackendError
from streaminfer.request import Batch, Request

if sys.platform != "linux":
    pytest.skip("POSIX shared memory of Linux", allow_module_level=True)

NAMES = {np.dtype(np.int32): "INT32", np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64"}
OUTGROWN = "shared memory size specified with the request for output 'y' (8 bytes) should be at least 16 bytes"


class Transport:
    """Scripted server that maps regions, and whose model returns twos of its current type."""

    binary = True

    def __init__(self, dtype):
        self.version, self.dtype, self.is_text = "1", np.dtype(dtype), False
        self.forgets = False  # each region at once
        self.known = {}
        self.calls = []

    def roll_out(self, dtype, *, is_text=False):
        self.version, self.dtype, self.is_text = "2", np.dtype(dtype), is_text

    async def metadata(self, model, version, timeout_s):
        return described(self.version, "BYTES" if self.is_text else NAMES[self.dtype])

    async def register(self, name, key, byte_size, timeout_s):
        descriptor = os.open(region_pool._FOLDER / key, os.O_RDWR)
        try:
            self.known[name] = mmap.mmap(descriptor, byte_size)
        finally:
            os.close(descriptor)
        if self.forgets:
            del self.known[name]

    async def unregister(self, name, timeout_s):
        self.known.pop(name, None)

    async def registered(self, timeout_s):
        return list(self.known)

    async def infer(self, call, timeout_s):
        self.calls.append(call)
        for tensor in call.inputs:
            if isinstance(tensor.content, SharedMemoryRef) and tensor.content.region not in self.known:
                raise ServerError("NOT_FOUND", f"Unable to find shared memory region: '{tensor.content.region}'")
        place = (call.outputs or {}).get("y")
        if self.is_text:
            content = np.array([[b"two"]], object) if place is None else None
            return InferResponse({"y": Tensor("y", "BYTES", (1, 1), content)}, version=self.version)
        twos = np.full((1, 2), 2, self.dtype)
        if place is not None:
            if place.byte_size < twos.nbytes:
                raise ServerError("INTERNAL", OUTGROWN)
            self.known[place.region][place.offset : place.offset + twos.nbytes] = twos.tobytes()
        content = twos.tobytes() if place is None else None
        return InferResponse({"y": Tensor("y", NAMES[self.dtype], (1, 2), content)}, version=self.version)

    async def close(self):
        pass


def described(version, datatype):
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "free", "datatype": "FP32", "shape": [-1, -1]},
    ]
    return {
        "versions": [version],
        "inputs": inputs,
        "outputs": [{"name": "y", "datatype": datatype, "shape": [-1, 1 if datatype == "BYTES" else 2]}],
    }


@pytest.fixture
def scenario():
    """Return a function that runs a coroutine function with a transport and a splitter, whose session shares memory."""

    def perform(body, *, dtype):
        async def main():
            transport = Transport(dtype)
            model = read_model("m", "1", described("1", NAMES[np.dtype(dtype)]), None)
            settings = make_settings(shared_memory=True)
            server = Server("s", "2.51", frozenset())
            session = Session(transport, server, model, settings, lambda _: None, CallCounts())
            await body(RequestSplitter(session, settings, lambda: None), transport)
            await session.close()
            assert transport.known == {}

        asyncio.run(main())

    return perform


def batch(*, free=1):
    return Batch({"x": np.ones((1, 2), np.float32), "free": np.ones((1, free), np.float32)}, [Request(None)])


@pytest.mark.parametrize(("before", "after"), [(np.int32, np.float32), (np.float64, np.float32)])
def test_output_of_another_version_has_its_own_type(scenario, before, after):
    """An output of another model version is read as its own type.

    This includes the first response of the new version, whose call was made with the description of the old version.
    """

    async def body(splitter, transport):
        assert (await splitter.infer(batch()))[0].dtype == before
        transport.roll_out(after)
        for _ in range(2):
            (row,) = await splitter.infer(batch())
            assert (row.dtype, row.tolist()) == (after, [2, 2])

    scenario(body, dtype=before)


@pytest.mark.parametrize("after", [{"dtype": np.float64}, {"dtype": np.int32, "is_text": True}], ids=["wider", "text"])
def test_output_without_room_refreshes_the_description(scenario, after):
    """An output that does not fit in its place makes the backend read the model's description again.

    One batch fails, and the next batch requests the outputs of the new description.
    """

    async def body(splitter, transport):
        await splitter.infer(batch())
        transport.roll_out(**after)
        with pytest.raises(BackendError, match=r"shared memory.* output 'y'|output 'y'.* shared memory"):
            await splitter.infer(batch())
        assert splitter.session.model.version == "2"
        (row,) = await splitter.infer(batch())
        assert row.tolist() == ([b"two"] if after.get("is_text") else [2, 2])

    scenario(body, dtype=np.int32)


def test_input_without_elements_travels_in_the_message(scenario):
    """An input without elements is sent in the message, because the server accepts no place of zero bytes in a region.

    A batch can have such an input only if no stack has checked it.
    """

    async def body(splitter, transport):
        (row,) = await splitter.infer(batch(free=0))
        assert row.tolist() == [2, 2]
        x, free = transport.calls[0].inputs
        assert isinstance(x.content, SharedMemoryRef)
        assert (free.shape, free.content.nbytes) == ((1, 0), 0)

    scenario(body, dtype=np.float32)


def test_restarted_server_gets_the_batch_once_more(scenario):
    """A batch in a region that a restarted server does not know is sent again in a new region, once."""

    async def body(splitter, transport):
        await splitter.infer(batch())
        transport.known.clear()
        (row,) = await splitter.infer(batch())
        assert row.tolist() == [2, 2]
        assert len(transport.calls) == 3

        transport.known.clear()
        transport.forgets = True
        with pytest.raises(BackendError, match="Unable to find shared memory region"):
            await splitter.infer(batch())
        assert len(transport.calls) == 5

    scenario(body, dtype=np.float32)
