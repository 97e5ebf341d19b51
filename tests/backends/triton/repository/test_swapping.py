"""Models of a real Triton that do not fit in memory together: loaded and unloaded by a `Device`, and by hand."""

import asyncio
import contextlib

import numpy as np
import pytest
from triton_settings import make_settings

import streaminfer as si
from streaminfer.backends.triton import TritonBackend
from streaminfer.request import Batch, Request

IN_MEMORY = {"READY", "LOADING", "UNLOADING"}
ROUNDS = 2


@pytest.fixture(scope="module")
def empty_triton(_servers):
    """Run a real Triton that loads a model only if a client requests it."""
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
    """Yield a function that returns, by name, the state of each model that is in memory, completely or partly."""
    transport = make_settings(url=server.http_url).connect()

    async def read():
        rows = await transport.index(10.0)
        return {row["name"]: row["state"] for row in rows if row.get("state") in IN_MEMORY}

    try:
        yield read
    finally:
        await transport.close()


@contextlib.asynccontextmanager
async def watched(read):
    """Yield a list to which each reading of the index is added in the background."""
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
    """Stop the backends and unload their models at the end."""
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


def test_two_models_swap_in_memory_for_one(empty_triton, connect):
    """Requests to both models complete, each load is counted, and the server never has both models in memory."""

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
            assert 1 <= had.loads <= had.batches  # on a busy machine a load can last longer than a model is passed over
            assert had.load_s > 0

    asyncio.run(main())


def test_a_model_is_loaded_and_unloaded_by_hand(connect, empty_triton):
    """A load reads the description of a model that was not in memory at the start; batches fail after an unload."""

    async def main():
        backend = connect("affine", memory_bytes=4)
        async with cleared(backend), index_of(empty_triton) as read:
            await backend.start()
            with pytest.raises(si.BackendError, match=r"'affine' on .* is not loaded; await its load\(\)"):
                backend.validate(Request(np.ones(1, np.float32)))
            with pytest.raises(si.BackendError, match="is not loaded"):
                await backend.infer(rows(1))
            assert backend.inputs == ()

            await backend.load()
            await backend.load()

            assert await read() == {"affine": "READY"}
            assert [spec.name for spec in backend.inputs] == ["x"]
            assert (await backend.infer(rows(1)))[0].tolist() == [3]
            await backend.unload()
            await backend.unload()
            assert await read() == {}
            with pytest.raises(si.BackendError, match="NOT_FOUND"):
                await backend.infer(rows(1))
            assert await read() == {}
            await backend.load()
            assert (await backend.infer(rows(2)))[0].tolist() == [5]

    asyncio.run(main())


def test_ensemble_parts_are_unloaded_with_the_ensemble(connect, empty_triton):
    """An unload of an ensemble returns when its parts have left memory too, except a part that was loaded by name."""

    async def main():
        ensemble, part = connect("mlp_ensemble", memory_bytes=4), connect("affine", memory_bytes=4)
        async with cleared(ensemble, part), index_of(empty_triton) as read:
            await ensemble.load()
            assert set(await read()) == {"mlp_ensemble", "mlp", "affine"}
            await ensemble.unload()
            assert await read() == {}
            await part.load()
            await ensemble.load()
            await ensemble.unload()
            assert await read() == {"affine": "READY"}

    asyncio.run(main())


def test_restarted_server_gets_its_model_back(connect, empty_triton):
    """After a restart of the server, a batch that finds the model missing fails, and the backend loads it again."""

    async def main():
        backend = connect("affine", memory_bytes=4)
        async with cleared(backend):
            await backend.start()
            await backend.load()
            await asyncio.to_thread(empty_triton.restart)

            failures = []
            async with asyncio.timeout(60):
                while True:
                    try:
                        results = await backend.infer(rows(1))
                    except si.BackendError as error:
                        failures.append(str(error))
                    else:
                        break
            assert results[0].tolist() == [3]
            assert "NOT_FOUND" in failures[-1]

    asyncio.run(main())


def test_a_model_that_the_server_lacks_is_named(connect):
    """A load of an unknown model is an error that lists the models of the repository."""

    async def main():
        with pytest.raises(
            ValueError, match=r"model: expected a model of the server's repository \('accumulate', 'aff"
        ):
            await connect("nope").load()
        await connect("nope").unload()
        with pytest.raises(si.BackendError, match="'affine' is not ready: "):
            await connect("affine").start()

    asyncio.run(main())


def test_a_failed_load_reports_the_server_reason(connect, empty_triton):
    """The error of a failed load has the server's reason; the model is not in memory, and a later load can succeed."""

    async def main():
        config = empty_triton.repository / "versioned" / "config.pbtxt"
        text = config.read_text()
        backend = connect("versioned", memory_bytes=4)
        async with cleared(backend), index_of(empty_triton) as read:
            await backend.start()
            config.write_text("nonsense")
            try:
                with pytest.raises(
                    si.BackendError, match=r"loading .*'versioned' on .* failed with INTERNAL: failed to load"
                ):
                    await backend.load()
            finally:
                config.write_text(text)
            assert await read() == {}
            with pytest.raises(si.BackendError, match="is not loaded"):
                await backend.infer(rows(1))

            await backend.load()

            assert await read() == {"versioned": "READY"}
            assert len(await backend.infer(rows(1, 2))) == 2

    asyncio.run(main())


@pytest.mark.usefixtures("_servers")
def test_missing_explicit_control_names_the_flag():
    """An unload at a server without explicit model control is an error that names the flag.

    Such a server loads all of its repository at its start, so a load has nothing to do.
    """
    from servers.triton_server import TritonServer

    async def main(server):
        for url, protocol in ((server.grpc_url, "grpc"), (server.http_url, "http")):
            backend = TritonBackend(url, "affine", protocol=protocol, memory_bytes=4)
            await backend.load()  # nothing to do
            with pytest.raises(si.BackendError, match="start it with --model-control-mode=explicit") as caught:
                await backend.unload()
            assert caught.value.retryable is False

    with TritonServer([], options=["--model-control-mode=none"]) as server:
        asyncio.run(main(server))
