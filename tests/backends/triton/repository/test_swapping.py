"""Models of a real Triton that do not fit in memory together: loaded and unloaded by a `Device`, and by hand."""

import asyncio
import contextlib
import time

import numpy as np
import pytest

import streaminfer as si
from streaminfer.backends.triton import TritonBackend
from streaminfer.backends.triton.endpoint import find_endpoint
from streaminfer.backends.triton.transport.connector import Connector
from streaminfer.backends.triton.transport.headers import Headers
from streaminfer.request import Batch, Request

IN_MEMORY = {"READY", "LOADING", "UNLOADING"}
ROUNDS = 2


@pytest.fixture(scope="module")
def empty_triton(_servers):
    """A real Triton that loads a model only when a client says so."""
    from servers.triton_server import TritonServer

    with TritonServer([]) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest.fixture
def connect(empty_triton, protocol):
    def make(model, **more):
        url = empty_triton.grpc_url if protocol == "grpc" else empty_triton.http_url
        return TritonBackend(url, model, **{"protocol": protocol, "statistics_every_s": None, **more})

    return make


@contextlib.asynccontextmanager
async def index_of(server):
    """A function that reads which models are in memory, wholly or in part, by name."""
    endpoint = find_endpoint(server.http_url, "http", None, False)
    transport = Connector(endpoint, "http", Headers(None), None).connect(time.monotonic_ns)

    async def read():
        rows = await transport.index(10.0)
        return {row["name"]: row["state"] for row in rows if row.get("state") in IN_MEMORY}

    try:
        yield read
    finally:
        await transport.close()


@contextlib.asynccontextmanager
async def watched(read):
    """What the index has shown meanwhile, each time."""
    seen = []

    async def watch():
        while True:
            seen.append(await read())

    watching = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        watching.cancel()
        await asyncio.wait([watching])


@contextlib.asynccontextmanager
async def cleared(*backends):
    """Each of the models has left memory in the end."""
    try:
        yield
    finally:
        for backend in backends:
            await backend.stop()
            await backend.unload()


def rows(*values):
    inputs = np.array([[value] for value in values], np.float32)
    return Batch(inputs, [Request(None) for _ in values])


def count(server, what):
    return server.log.read_text(errors="replace").count(what)


def test_two_models_share_memory_that_holds_one(empty_triton, connect):
    """Requests to both complete, each load counts, and the server never has both in memory."""

    async def main():
        device = si.Device("gpu:0", memory_bytes=5)
        backends = [connect(model, memory_bytes=4) for model in ("affine", "versioned")]
        for backend in backends:
            backend.name = backend.model
        stacks = [si.Stack(si.AdaptiveBatcher(max_batch_size=8, device=device), backend) for backend in backends]
        before = [count(empty_triton, f"successfully loaded '{backend.model}'") for backend in backends]
        async with cleared(*backends), index_of(empty_triton) as read, watched(read) as seen:
            async with stacks[0] as affine, stacks[1] as versioned:
                for _ in range(ROUNDS):
                    x = np.ones(1, np.float32)
                    outputs = await asyncio.gather(*(stack(x) for stack in (affine, versioned) for _ in range(20)))
                    assert [one.tolist() for one in outputs[:20]] == [[3.0]] * 20
                    assert [one[0] for one in outputs[20:]] == [outputs[20][0]] * 20
            models = device.statistics().models
            (loaded,) = device.statistics().loaded
            assert await read() == {loaded: "READY"}

        assert max(map(len, seen)) == 1
        assert {name for one in seen for name in one} == {"affine", "versioned"}
        for backend, earlier in zip(backends, before, strict=True):
            had = models[backend.model]
            assert had.loads == count(empty_triton, f"successfully loaded '{backend.model}'") - earlier
            assert 1 <= had.loads <= 1 + ROUNDS  # at the start, and once for all that waits
            assert had.load_s > 0

    asyncio.run(main())
