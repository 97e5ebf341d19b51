"""TritonBackend without a version: it follows a real Triton from one version of a model to the next."""

import asyncio
import contextlib

import numpy as np
import pytest
from servers.rollout import MODEL, roll_out
from triton_settings import make_settings

import streaminfer as si
from streaminfer.backends.triton import TritonBackend
from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.messages import InferResponse, Tensor
from streaminfer.backends.triton.model import Server, read_model
from streaminfer.backends.triton.request_splitter import RequestSplitter
from streaminfer.backends.triton.session import CallCounts, Session
from streaminfer.backends.triton.settings import Settings
from streaminfer.errors import Closed
from streaminfer.testing import run


def ask(backend, *, x=7.0):
    inputs = np.full((2, 1), x, np.float32)
    return backend.infer(si.Batch(inputs, [si.Request(None), si.Request(None)]))


@pytest.fixture
def make(triton):
    def make(protocol="grpc", **more):
        url = triton.grpc_url if protocol == "grpc" else triton.http_url
        return TritonBackend(url, MODEL, **{"protocol": protocol, "statistics_every_s": None, **more})

    return make


@pytest.mark.parametrize(("protocol", "shared_memory"), [("grpc", False), ("http", False), ("grpc", True)])
def test_roll_outs_under_load_lose_nothing(make, triton, protocol, shared_memory):
    """Each request gets a response, also from the cache, of a version that is not older than one seen before."""
    report = asyncio.run(roll_out(triton, make(protocol, shared_memory=shared_memory), 3, both_s=0.0))
    assert report.lost == {}
    assert report.wrong == []
    assert report.versions == ["2", "3", "4"]
    assert set(report.answered) == {1, 2, 3, 4}
    assert report.from_cache > 0


def test_fingerprint_is_of_the_version_that_answers(make, triton):
    async def scenario():
        backend = make()
        pinned = make(version="1")
        await backend.start()
        await pinned.start()
        try:
            assert backend.fingerprint == pinned.fingerprint
            assert backend.fingerprint.endswith(f"{MODEL} 1")
            await asyncio.to_thread(triton.set_versions, MODEL, 1, 2)
            assert [row.tolist() for row in await ask(backend)] == [[7, 2]] * 2
            assert [row.tolist() for row in await ask(pinned)] == [[7, 1]] * 2
            assert backend.fingerprint.endswith(f"{MODEL} 2")
            assert backend.description.version == "2"
            await asyncio.to_thread(triton.set_versions, MODEL, 2)
            with pytest.raises(si.BackendError):
                await ask(pinned)
            assert (await ask(backend))[0].tolist() == [7, 2]
        finally:
            await backend.stop()
            await pinned.stop()
            await asyncio.get_running_loop().shutdown_default_executor()

    try:
        asyncio.run(scenario())
    finally:
        triton.set_versions(MODEL, 1)


def test_a_version_is_noticed_while_a_cache_answers(make, triton):
    """If a cache responds and no request reaches the server, reading the server's statistics finds the new version."""

    async def scenario():
        backend = make(statistics_every_s=0.01)
        async with si.Stack(si.EdgeCache(), backend) as service:
            one = si.Request(np.ones(1, np.float32))
            assert (await service.call(one)).outputs.tolist() == [1, 1]
            assert (await service.call(one)).source == "cache"
            await asyncio.to_thread(triton.set_versions, MODEL, 2)
            async with asyncio.timeout(20):
                while backend.description.version == "1":
                    await asyncio.sleep(0.001)
            assert (await service.call(one)).outputs.tolist() == [1, 2]
            assert backend.statistics().server_error == ""
        await asyncio.get_running_loop().shutdown_default_executor()

    try:
        asyncio.run(scenario())
    finally:
        triton.set_versions(MODEL, 1)


class Versions:
    """Transport with a script of the model's descriptions, and of the version that responds to each call."""

    def __init__(self, *answers, columns):
        self.answers = list(answers)
        self.columns = list(columns)
        self.asked = []

    async def metadata(self, model, version, timeout_s):
        self.asked.append(version)
        return described(self.columns.pop(0))

    async def infer(self, call, timeout_s):
        assert call.version == ""
        version, columns = self.answers.pop(0)
        content = np.zeros((1, columns), np.float32).tobytes()
        return InferResponse({"y": Tensor("y", "FP32", (1, columns), memoryview(content))}, version=version)


def described(columns):
    return {
        "versions": ["9"],
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, columns]}],
    }


def open_session(transport):
    model = read_model("m", "1", described(1), None)
    settings = make_settings(clock=lambda: 0)
    return Session(transport, Server("s", "1", frozenset()), model, settings, lambda _: None, CallCounts())


@pytest.fixture
def follow():
    """Return a function that makes calls in turn, and returns the shape of each row with the session's model version.

    There is one call per number of known version changes; ``None`` is the session's current number.
    """

    async def ask_all(transport, changes):
        session = open_session(transport)
        shapes = []
        for known in changes:
            answer = await transport.infer(session.call({"x": np.zeros((1, 1), np.float32)}, {}), 1.0)
            rows = await session.read(answer, 1, session.changes if known is None else known, batched=True)
            shapes.append((rows[0].shape, session.model.version))
        return shapes

    return lambda transport, *changes: asyncio.run(ask_all(transport, changes))


def test_response_is_read_by_its_own_version(follow):
    """A response is read by the description of the version that produced it."""
    transport = Versions(("1", 1), ("2", 3), ("2", 3), columns=[3])
    assert follow(transport, None, None, None) == [((1,), "1"), ((3,), "2"), ((3,), "2")]
    assert transport.asked == [""]


def test_late_response_of_old_version_is_ignored(follow):
    """A response from before a version change changes nothing.

    Version 1 got the request before version 2 existed, and responds after the first response of version 2.
    """
    transport = Versions(("2", 3), ("1", 1), ("2", 3), columns=[3])
    assert follow(transport, None, 0, None) == [((3,), "2"), ((1,), "2"), ((3,), "2")]


def test_a_version_rollback_is_noticed(follow):
    transport = Versions(("2", 3), ("1", 1), columns=[3, 1])
    assert follow(transport, None, None) == [((3,), "2"), ((1,), "1")]


def test_unversioned_server_is_not_described_again(follow):
    """The description of a model is not read again if the server names no version in its responses."""
    transport = Versions(("", 1), columns=[])
    assert follow(transport, None) == [((1,), "1")]


class SlowVersions(Versions):
    """Transport that takes 50 ms to describe the model."""

    async def metadata(self, model, version, timeout_s):
        self.closed = asyncio.Event()
        metadata = await super().metadata(model, version, timeout_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.050):
                await self.closed.wait()
                raise Closed("the connection to the server was closed")
        return metadata

    async def close(self):
        self.closed.set()


def test_description_outlives_its_callers():
    """The description of a new version is read to its end, even if its callers have less time than it takes.

    Otherwise no request after a roll-out would be on time until the statistics are read.
    """

    async def main(loop):
        transport = SlowVersions(("2", 3), ("2", 3), columns=[3])
        session = open_session(transport)
        answer = await transport.infer(session.call({"x": np.zeros((1, 1), np.float32)}, {}), 1.0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.030):
                await session.read(answer, 1, 0, batched=True)
        async with asyncio.timeout(0.030):
            rows = await session.read(answer, 1, 0, batched=True)
        assert (rows[0].shape, session.model.version, loop.time()) == ((3,), "2", pytest.approx(0.050))
        assert transport.asked == [""]
        await session.close()

    run(main)


def test_response_described_too_late_is_late():
    """A response is late if its new model version is described only after the deadline.

    The description takes part of the request's time.
    """

    async def main(loop):
        session = open_session(SlowVersions(("2", 3), columns=[3]))
        with pytest.raises(ServerError, match="DEADLINE_EXCEEDED: the server did not describe its new version in time"):
            await session.infer({"x": np.zeros((1, 1), np.float32)}, 1, {}, 0.030)
        assert loop.time() == pytest.approx(0.030)
        await session.close()

    run(main)


@pytest.mark.parametrize("deadline_s", [0.030, None])
def test_streamed_response_described_too_late_is_late(deadline_s):
    """A streamed response is late if its new model version is described too late.

    Its limit is the deadline of the stream, or without a deadline the timeout of each response.
    """

    class Streaming(SlowVersions):
        async def stream(self, call, timeout_s):
            yield await self.infer(call, timeout_s)

    async def main(loop):
        session = open_session(Streaming(("2", 3), columns=[3]))
        settings = make_settings(clock=loop.clock, timeout_s=10.0 if deadline_s else 0.030)
        splitter = RequestSplitter(session, settings, lambda: None)
        deadline_ns = None if deadline_s is None else loop.now_ns + round(deadline_s * 1e9)
        with pytest.raises(si.DeadlineExceeded, match="describe its new version in time"):
            await anext(splitter.responses({"x": np.zeros((1, 1), np.float32)}, {}, deadline_ns))
        assert loop.time() == pytest.approx(0.030)
        await session.close()

    run(main)


def test_a_close_cancels_a_metadata_read():
    """A close cancels the reading of metadata, whose callers get `Closed`, and leaves no task."""

    async def main(loop):
        session = open_session(SlowVersions(columns=[3]))
        waiting = [asyncio.create_task(session.refresh_model(0, "2")) for _ in range(2)]
        await asyncio.sleep(0.010)
        waiting[0].cancel()
        await session.close()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in outcomes] == [asyncio.CancelledError, Closed]
        assert loop.time() == pytest.approx(0.010)
        assert len(asyncio.all_tasks()) == 1

    run(main)


def test_streams_survive_change_of_sequence_idle_time():
    """The backend keeps its streams if a new version has another idle time of sequences.

    The next step of a stream shows whether the server has forgotten its sequence.
    """

    class Stateful(Versions):
        async def config(self, model, version, timeout_s):
            return {"max_batch_size": 8, "sequence_batching": {"max_sequence_idle_microseconds": 6_000_000}}

        async def close(self):
            pass

    async def main():
        config = {"max_batch_size": 8, "sequence_batching": {"max_sequence_idle_microseconds": 5_000_000}}
        server = Server("s", "1", frozenset({"model_configuration"}))
        model = read_model("m", "1", described(1), config)
        session = Session(Stateful(columns=[1]), server, model, make_settings(), lambda _: None, CallCounts())
        async with session.sequences.step("a", 0):
            pass
        await session.refresh_model(0, "2")
        assert session.model.sequence_idle_s == 6.0
        assert session.sequences.knows("a")
        await session.close()

    asyncio.run(main())


class Rolling(Versions):
    """Transport of a whole backend, which responds to calls when the gate opens."""

    binary = True

    def __init__(self, *answers, columns):
        super().__init__(*answers, columns=columns)
        self.sent, self.gate = asyncio.Event(), asyncio.Event()

    async def server(self, timeout_s):
        return {"name": "s", "version": "1"}

    async def ready(self, model, version, timeout_s):
        return True

    async def metadata(self, model, version, timeout_s):
        return {**await super().metadata(model, version, timeout_s), "versions": ["1"]}

    async def infer(self, call, timeout_s):
        self.sent.set()
        await self.gate.wait()
        return await super().infer(call, timeout_s)

    async def close(self):
        pass


def test_version_change_during_drain_is_followed(monkeypatch):
    """The backend follows a new model version that appears while a stop drains.

    It reads the last responses by the new description, and caches see that the fingerprint has changed.
    """

    async def main():
        transport = Rolling(("2", 3), columns=[1, 3])
        monkeypatch.setattr(Settings, "connect", lambda _: transport)
        backend = TritonBackend("localhost:8001", "m", statistics_every_s=None)
        await backend.start()
        changes = backend.fingerprint_changes()
        call = asyncio.create_task(backend.infer(si.Batch(np.zeros((1, 1), np.float32), [si.Request(None)])))
        await transport.sent.wait()
        stop = asyncio.create_task(backend.stop(drain=True))
        await asyncio.sleep(0)
        transport.gate.set()
        await stop
        assert (await call)[0].shape == (3,)
        assert backend.fingerprint.endswith("m 2")
        assert backend.fingerprint_changes() == changes + 1

    asyncio.run(main())
