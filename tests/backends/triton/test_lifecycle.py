"""Life of a backend's session: it opens at a start that finds the model in memory, or at a load of the model."""

import asyncio

import pytest
from triton_settings import make_settings

from streaminfer.backends.triton import TritonBackend
from streaminfer.backends.triton import lifecycle as module
from streaminfer.backends.triton.errors import ModelNotReady, ServerError
from streaminfer.backends.triton.lifecycle import SessionLifecycle
from streaminfer.backends.triton.model import describe_server
from streaminfer.backends.triton.session import InFlightCounter
from streaminfer.errors import Closed


class Session:
    """Session that sends nothing; the lifecycle makes it with `open`."""

    opened = closed = 0
    not_ready = False
    gate = None

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.calls = InFlightCounter()
        self.streams = InFlightCounter()
        self.stream_reads = InFlightCounter()
        self.changes = 0
        self.refreshed = 0

    @classmethod
    async def open(cls, settings, _changed, _counts):
        if cls.gate is not None:
            await cls.gate.wait()
        if cls.not_ready:
            raise ModelNotReady(f"model {settings.model!r} is not ready")
        cls.opened += 1
        return cls()

    async def refresh_model(self, changes):
        self.refreshed += 1

    async def close(self):
        type(self).closed += 1


class Control:
    """Scripted control of the model, whose load describes the model."""

    def __init__(self, _settings, loaded):
        self.loaded = loaded
        self.is_new = True

    async def load(self):
        Session.not_ready = False
        await self.loaded(self.is_new)

    def restore(self):
        pass

    async def stop(self):
        pass


@pytest.fixture(autouse=True)
def _scripted(monkeypatch):
    Session.opened = Session.closed = 0
    Session.not_ready, Session.gate = False, None
    monkeypatch.setattr(module, "Session", Session)
    monkeypatch.setattr(module, "ModelControl", Control)


def make(may_be_unloaded=True):
    return SessionLifecycle(make_settings(may_be_unloaded=may_be_unloaded), lambda _: None)


def test_start_needs_model_unless_unloadable():
    """A start needs the model in memory, unless the backend may unload it.

    Only a backend with memory_bytes starts without its model.
    """

    async def main():
        Session.not_ready = True
        with pytest.raises(ModelNotReady):
            await make(may_be_unloaded=False).start()
        lifecycle = make()
        await lifecycle.start()
        with pytest.raises(ModelNotReady, match=r"the backend is not loaded; await its load\(\)"):
            lifecycle.running()
        await lifecycle.stop(drain=True)
        with pytest.raises(Closed, match="the backend is not started, or stopped"):
            lifecycle.running()

    asyncio.run(main())


@pytest.mark.parametrize(("version", "error"), [("", ModelNotReady), ("1", ModelNotReady), ("2", ValueError)])
def test_model_ready_during_start_is_not_unknown(version, error):
    """A model that becomes ready during the start is reported as not ready, not as unknown.

    Another client's load ended between the two calls to the server; a repeated start finds the model.
    """

    class Transport:
        async def server(self, timeout_s):
            return {"extensions": ["model_repository"]}

        async def metadata(self, model, version, timeout_s):
            raise ServerError("NOT_FOUND", "Request for unknown model: 'm' is not found")

        async def index(self, timeout_s):
            return [{"name": "m", "version": "1", "state": "READY"}]

    with pytest.raises(error):
        asyncio.run(describe_server(Transport(), make_settings(version=version)))


def test_a_server_may_write_null_for_an_empty_list():
    """A server may send null for an empty list, because some servers' lists are null until they get an element."""

    class Transport:
        async def server(self, timeout_s):
            return {"name": "peer", "version": "1", "extensions": None}

        async def metadata(self, model, version, timeout_s):
            tensor = {"name": "x", "datatype": "FP32", "shape": [-1]}
            return {"name": model, "versions": None, "inputs": [tensor], "outputs": [tensor]}

        async def ready(self, model, version, timeout_s):
            return True

    server, model = asyncio.run(describe_server(Transport(), make_settings()))
    assert server.extensions == frozenset()
    assert model.version == ""


def test_later_load_refreshes_the_open_session():
    """The first load opens the session, and a later one reads the model's description again.

    A load of a model that is already in memory reads nothing.
    """

    async def main():
        Session.not_ready = True
        lifecycle = make()
        await lifecycle.start()
        await lifecycle.load()
        session = lifecycle.running().session
        assert (Session.opened, session.refreshed) == (1, 0)
        await lifecycle.load()
        assert session.refreshed == 1
        lifecycle.control.is_new = False
        await lifecycle.load()
        assert (Session.opened, session.refreshed) == (1, 1)
        await lifecycle.stop(drain=True)
        assert Session.closed == 1

    asyncio.run(main())


def test_load_while_stopped_opens_no_session():
    """A load before the start, or after the stop, opens no session.

    A device may load the model of a stack that has stopped.
    """

    async def main():
        lifecycle = make()
        await lifecycle.load()
        assert Session.opened == 0
        await lifecycle.start()
        await lifecycle.stop(drain=True)
        await lifecycle.load()
        assert Session.opened == 1

    asyncio.run(main())


def test_a_stop_during_a_load_leaves_no_session():
    """If a stop ends during a load, the session that the load opens is closed at once."""

    async def main():
        Session.not_ready = True
        lifecycle = make()
        await lifecycle.start()
        Session.gate = asyncio.Event()
        loading = asyncio.create_task(lifecycle.load())
        await asyncio.sleep(0)
        await lifecycle.stop(drain=True)
        Session.gate.set()
        await loading
        assert (Session.opened, Session.closed) == (1, 1)
        with pytest.raises(Closed):
            lifecycle.running()

    asyncio.run(main())


def test_cancelled_stop_ends_statistics_reader(monkeypatch):
    """A stop that is cancelled still ends the task that reads the server's statistics.

    A load in the background takes a moment to end; the stop is cancelled in that moment.
    """

    async def forever(self):
        await asyncio.Event().wait()

    async def main():
        before = asyncio.all_tasks()
        lifecycle = make()
        await lifecycle.start()
        lifecycle.reader._reading = asyncio.create_task(forever(None))
        monkeypatch.setattr(Control, "stop", forever)
        stopping = asyncio.create_task(lifecycle.stop(drain=True))
        for _ in range(3):
            await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert asyncio.all_tasks() == before
        assert Session.closed == 1

    asyncio.run(main())


def test_a_load_on_another_event_loop_is_rejected():
    """The session belongs to the loop that opened it, until that loop is closed."""
    lifecycle = make()
    first = asyncio.new_event_loop()
    first.run_until_complete(lifecycle.start())

    with pytest.raises(RuntimeError, match="the backend belongs to the event loop that started it"):
        asyncio.run(lifecycle.load())

    first.close()
    asyncio.run(lifecycle.load())
    assert lifecycle.splitter is not None


@pytest.mark.parametrize(
    ("argument", "error"),
    [({"memory_bytes": 0}, ValueError), ({"memory_bytes": "4"}, TypeError), ({"load_timeout_s": 0}, ValueError)],
    ids=["none", "text", "no-time"],
)
def test_arguments_are_checked(argument, error):
    """The error names the invalid argument."""
    with pytest.raises(error, match=f"{next(iter(argument))}: expected"):
        TritonBackend("localhost:8001", "m", **argument)


def test_only_backend_with_memory_bytes_can_be_swapped():
    """Only a backend with `memory_bytes` can be loaded and unloaded by a device.

    The client cannot know how much memory a model takes.
    """
    assert TritonBackend("localhost:8001", "m").capabilities().residency is None
    residency = TritonBackend("localhost:8001", "m", memory_bytes=4).capabilities().residency
    assert (residency.memory_bytes, residency.load_at_start) == (4, True)
