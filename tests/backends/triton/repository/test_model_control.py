"""Loads and unloads of one model, against a scripted server in virtual time."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from streaminfer.backends.triton.errors import ServerError
from streaminfer.backends.triton.repository.model_control import ModelControl
from streaminfer.errors import BackendError, DeadlineExceeded
from streaminfer.testing import run

TIMEOUT_S = 10.0
POLL_S = 0.1  # the longest time until a change of state is noticed


class Server:
    """Scripted server whose models change their state on a call, or at an instant of the loop."""

    def __init__(self, loop, **states):
        self.loop = loop
        self.states = states
        self.load_s = self.unload_s = 1.0
        self.failing = {}
        self.sent = []
        self.connections = 0

    def connect(self):
        self.connections += 1
        return self

    async def close(self):
        self.connections -= 1

    async def index(self, timeout_s):
        await self._step("index")
        return [
            {"name": name, **({"version": "1", "state": state} if state else {})} for name, state in self.states.items()
        ]

    async def load(self, model, timeout_s):
        self.sent.append("load")
        self.states[model] = "LOADING"
        self.later(self.load_s, model, "READY")
        await asyncio.sleep(self.load_s)
        await self._step("load")

    async def unload(self, model, timeout_s):
        self.sent.append("unload")
        await self._step("unload")
        self.states[model] = "UNLOADING"
        self.later(self.unload_s, model, "UNAVAILABLE")

    def later(self, delay_s, model, state):
        self.loop.call_later(delay_s, self.states.__setitem__, model, state)

    async def _step(self, name):
        await asyncio.sleep(0.001)
        if name in self.failing:
            raise self.failing[name]


class Rig:
    """Scripted server, and the control of its model ``m``."""

    def __init__(self, loop, **states):
        self.server = Server(loop, **states)
        self.loaded = []
        self.describing = None
        settings = SimpleNamespace(
            connect=self.server.connect, model="m", name="the backend", timeout_s=1.0, load_timeout_s=TIMEOUT_S
        )
        self.control = ModelControl(settings, self._describe)

    async def _describe(self, is_new):
        self.loaded.append(is_new)
        if self.describing is not None:
            raise self.describing

    @property
    def sent(self):
        return self.server.sent

    @property
    def state(self):
        return self.server.states["m"]


def scenario(**states):
    """Return a decorator that makes a test of a coroutine function with a rig; the test checks for open connections."""

    def decorate(body):
        def test():
            async def main(loop):
                rig = Rig(loop, **states)
                await body(rig, loop)
                assert rig.server.connections == 0

            run(main)

        test.__name__, test.__doc__ = body.__name__, body.__doc__
        return test

    return decorate


# -- load -----------------------------------------------------------------------------------------------------------


@scenario(m=None)
async def test_load_returns_when_the_model_is_ready(rig, loop):
    """A load is sent once; a load of a ready model sends nothing, because the server would load the model again."""
    await rig.control.load()
    await rig.control.load()

    assert (rig.sent, rig.state, rig.loaded) == (["load"], "READY", [True, False])
    assert loop.time() == pytest.approx(1.0, abs=POLL_S)


@scenario(m="LOADING")
async def test_load_waits_for_the_load_of_another_client(rig, loop):
    """A load waits for another client's load of the model, and does not send a second one."""
    rig.server.later(2.0, "m", "READY")

    await rig.control.load()

    assert (rig.sent, rig.loaded) == ([], [False])
    assert loop.time() == pytest.approx(2.0, abs=POLL_S)


@scenario(m="UNLOADING")
async def test_load_waits_until_the_model_has_left(rig, loop):
    """A load waits until an unload has ended, because the model would otherwise be in memory twice."""
    rig.server.later(2.0, "m", "UNAVAILABLE")

    await rig.control.load()

    assert (rig.sent, rig.loaded) == (["load"], [True])
    assert loop.time() == pytest.approx(3.0, abs=2 * POLL_S)


@scenario(m="LOADING")
async def test_load_ends_at_its_time_limit(rig, loop):
    """If the state of the model never changes, the load ends at its time limit, and the error names the state."""
    with pytest.raises(DeadlineExceeded, match=r"loading the backend: not done after 10\.0 s; it is LOADING"):
        await rig.control.load()

    assert loop.time() == pytest.approx(TIMEOUT_S, abs=2 * POLL_S)


@scenario(other="READY", m2=None)
async def test_load_of_an_unknown_model_lists_the_others(rig, loop):
    """A load of an unknown model lists the models of the repository, because the name may be misspelled."""
    with pytest.raises(
        ValueError, match=r"model: expected a model of the server's repository \('m2', 'other'\), got 'm'"
    ):
        await rig.control.load()

    assert rig.sent == []


@scenario(m=None)
async def test_a_failed_load_sends_no_unload(rig, loop):
    """A model that the server could not load is not unloaded, because it is not in memory."""

    async def load(model, timeout_s):
        rig.server.states["m"] = "UNAVAILABLE"
        raise ServerError("INTERNAL", "failed to load 'm': no such backend")

    rig.server.load = load
    with pytest.raises(BackendError, match="loading the backend failed with INTERNAL: failed to load 'm': no such"):
        await rig.control.load()

    assert (rig.sent, rig.loaded) == ([], [])


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ServerError("UNAVAILABLE", "the connection broke"), "failed with UNAVAILABLE: the connection broke"),
        (
            ServerError("DEADLINE_EXCEEDED", "no response within 10 s"),
            "the deadline passed before the server responded",
        ),
    ],
    ids=["connection", "timeout"],
)
def test_a_load_without_a_response_is_undone(failure, expected):
    """A load without a response is undone before the error is raised, because the server may still load the model."""

    @scenario(m=None)
    async def body(rig, loop):
        rig.server.failing["load"] = failure
        with pytest.raises((BackendError, DeadlineExceeded), match=expected):
            await rig.control.load()

        assert (rig.sent, rig.state, rig.loaded) == (["load", "unload"], "UNAVAILABLE", [])

    body()


@scenario(m=None)
async def test_a_model_that_cannot_be_described_is_unloaded(rig, loop):
    """If the server has loaded a model that cannot be described, the load fails and unloads the model again."""
    rig.describing = BackendError("model 'm': expected types that NumPy has")
    with pytest.raises(BackendError, match="types that NumPy has"):
        await rig.control.load()

    assert (rig.sent, rig.state) == (["load", "unload"], "UNAVAILABLE")


@scenario(m="READY")
async def test_a_failed_load_keeps_an_already_loaded_model(rig, loop):
    """A failed load does not unload a model that was loaded before it."""
    rig.describing = BackendError("no")
    with pytest.raises(BackendError, match="no"):
        await rig.control.load()

    assert (rig.sent, rig.state) == ([], "READY")


@scenario(m=None)
async def test_a_load_that_cannot_be_undone_adds_a_note(rig, loop):
    """If a failed load cannot be undone, its error has a note that the model may still take memory."""
    rig.server.failing["load"] = ServerError("UNAVAILABLE", "the connection broke")
    rig.server.failing["unload"] = ServerError("UNAVAILABLE", "refused")
    with pytest.raises(BackendError, match="the connection broke") as caught:
        await rig.control.load()

    (note,) = caught.value.__notes__
    assert note == "the model may still take memory: unloading the backend failed with UNAVAILABLE: refused"


# -- unload ---------------------------------------------------------------------------------------------------------


@scenario(m="READY")
async def test_unload_returns_when_the_model_has_left(rig, loop):
    """An unload returns when the model has left memory, which is after the server's response.

    A second unload sends nothing.
    """
    await rig.control.unload()
    assert (rig.sent, rig.state) == (["unload"], "UNAVAILABLE")
    assert loop.time() == pytest.approx(1.0, abs=2 * POLL_S)

    await rig.control.unload()
    assert rig.sent == ["unload"]


@scenario(m="UNLOADING")
async def test_unload_waits_for_that_of_another_client(rig, loop):
    """An unload waits for another client's unload of the model, and does not send a second one."""
    rig.server.later(2.0, "m", "UNAVAILABLE")

    await rig.control.unload()

    assert rig.sent == []
    assert loop.time() == pytest.approx(2.0, abs=POLL_S)


@scenario(m="READY", part="READY", other="UNLOADING")
async def test_unload_waits_for_the_parts_of_an_ensemble(rig, loop):
    """An unload waits for the ensemble's parts, which take memory too, but not for a model that was leaving before."""
    loop.call_later(0.5, rig.server.states.__setitem__, "part", "UNLOADING")
    rig.server.later(3.0, "part", "UNAVAILABLE")

    await rig.control.unload()

    assert rig.server.states == {"m": "UNAVAILABLE", "part": "UNAVAILABLE", "other": "UNLOADING"}


@scenario(m="READY")
async def test_unload_ends_at_its_time_limit(rig, loop):
    """If a request keeps the model in memory, the unload ends at its time limit, and the error names the state."""
    rig.server.unload_s = 1000.0
    with pytest.raises(DeadlineExceeded, match=r"unloading the backend: not done after 10\.0 s; it is UNLOADING"):
        await rig.control.unload()

    assert loop.time() == pytest.approx(TIMEOUT_S, abs=2 * POLL_S)


@scenario()
async def test_unload_of_an_unknown_model_does_nothing(rig, loop):
    """An unload of an unknown model sends nothing, because the model is not in memory."""
    await rig.control.unload()

    assert rig.sent == []


# -- servers without model control ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "state"), [("load", None), ("unload", "READY")])
def test_missing_model_control_mode_names_the_flag(call, state):
    """If the server has no explicit model control, the error names the flag and is not retryable."""

    @scenario(m=state)
    async def body(rig, loop):
        async def reject(model, timeout_s):
            raise ServerError("UNAVAILABLE", "explicit model load / unload is not allowed if polling is enabled")

        rig.server.load = rig.server.unload = reject
        with pytest.raises(BackendError, match=f"{call}ing the backend.*--model-control-mode=explicit") as caught:
            await getattr(rig.control, call)()
        assert caught.value.retryable is False

    body()


@pytest.mark.parametrize("call", ["load", "unload"])
@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (ServerError("UNIMPLEMENTED", "no such method"), "it has no extension for that"),
        (ServerError("NOT_FOUND", "no such path"), "it has no extension for that"),
        (ServerError("UNAVAILABLE", "connection refused"), "failed with UNAVAILABLE: connection refused"),
        (ServerError("DEADLINE_EXCEEDED", "no response"), "the deadline passed before the server responded"),
    ],
    ids=["method", "path", "down", "silent"],
)
def test_an_index_that_cannot_be_read_is_an_error(call, failure, expected):
    """An index that cannot be read is an error: the server may lack the extension, be down, or be silent."""

    @scenario(m="READY")
    async def body(rig, loop):
        rig.server.failing["index"] = failure
        with pytest.raises((BackendError, DeadlineExceeded), match=f"{call}ing the backend.*{expected}"):
            await getattr(rig.control, call)()
        assert rig.sent == []

    body()


# -- several calls --------------------------------------------------------------------------------------------------


@scenario(m=None)
async def test_loads_and_unloads_run_one_at_a_time(rig, loop):
    """An unload that is called during a load begins after the load has ended."""
    loading = asyncio.create_task(rig.control.load())
    await asyncio.sleep(0.5)

    await rig.control.unload()

    assert loading.done()
    assert (rig.sent, rig.state) == (["load", "unload"], "UNAVAILABLE")


@scenario(m=None)
async def test_a_cancelled_load_continues_at_the_server(rig, loop):
    """A cancelled load continues at the server; the next load waits for it, and does not send a second one."""
    loading = asyncio.create_task(rig.control.load())
    await asyncio.sleep(0.5)
    loading.cancel()
    await asyncio.wait([loading])

    await rig.control.load()

    assert (rig.sent, rig.loaded) == (["load"], [False])


def test_control_works_on_a_later_event_loop():
    """Calls on an event loop that has ended do not block calls on a later loop."""

    async def main(loop):
        rig.server.loop = loop
        await asyncio.gather(rig.control.load(), rig.control.unload(), rig.control.load())
        assert rig.state == "READY"

    rig = Rig(None, m=None)
    run(main)
    run(main)


# -- restore --------------------------------------------------------------------------------------------------------


@scenario(m=None)
async def test_a_lost_model_is_loaded_again_once(rig, loop):
    """All batches that notice the loss of the model start only one load."""
    await rig.control.load()
    rig.server.states["m"] = None

    for _ in range(3):
        rig.control.restore()
        await asyncio.sleep(0.1)
        assert len(asyncio.all_tasks()) == 2
    await asyncio.sleep(2.0)

    assert (rig.sent, rig.state) == (["load", "load"], "READY")


@scenario(m=None)
async def test_an_unload_outruns_a_restore(rig, loop):
    """An unload prevents a restore that has not begun, because a device may have made room for another model."""
    await rig.control.load()
    rig.server.states["m"] = None
    rig.control.restore()
    await rig.control.unload()
    await asyncio.sleep(5.0)
    assert rig.sent == ["load"]


@pytest.mark.parametrize("before", [[], ["load", "unload"]], ids=["never", "unloaded"])
def test_only_loaded_models_are_restored(before):
    """A model is restored only if a load brought it into memory, and not after an unload."""

    @scenario(m=None)
    async def body(rig, loop):
        for call in before:
            await getattr(rig.control, call)()
        rig.control.restore()
        await asyncio.sleep(5.0)
        assert rig.sent == before

    body()


def test_a_model_that_cannot_be_restored_is_logged(caplog):
    """A restore that fails is logged, and the next batch that notices the loss tries again."""

    @scenario(m=None)
    async def body(rig, loop):
        await rig.control.load()
        rig.server.states["m"] = None
        rig.server.failing["index"] = ServerError("UNAVAILABLE", "refused")
        rig.control.restore()
        await asyncio.sleep(1.0)
        assert "the backend was lost by its server and could not be loaded again: " in caplog.text
        rig.server.failing.clear()
        rig.control.restore()
        await asyncio.sleep(2.0)
        assert rig.state == "READY"

    with caplog.at_level(logging.WARNING, "streaminfer"):
        body()


def test_a_restore_without_its_certificates_is_logged(caplog):
    """A restore that cannot read its certificates is logged, and the next restore tries again.

    Certificates are read for each connection, and a file that is being replaced may be missing.
    """

    @scenario(m=None)
    async def body(rig, loop):
        await rig.control.load()
        rig.server.states["m"] = None
        connect = rig.control._settings.connect

        def find_no_file():
            raise FileNotFoundError("ca.pem")

        rig.control._settings.connect = find_no_file
        rig.control.restore()
        await asyncio.sleep(0.1)
        assert "the backend was lost by its server and could not be loaded again: ca.pem" in caplog.text

        rig.control._settings.connect = connect
        rig.control.restore()
        await asyncio.sleep(2.0)
        assert rig.state == "READY"

    with caplog.at_level(logging.WARNING, "streaminfer"):
        body()


@scenario(m=None)
async def test_a_stop_ends_background_tasks(rig, loop):
    """A stop ends the background tasks at once."""
    await rig.control.load()
    rig.server.states["m"] = None
    rig.control.restore()
    await asyncio.sleep(0.5)

    before_s = loop.time()
    await rig.control.stop()

    assert loop.time() == before_s
    assert len(asyncio.all_tasks()) == 1
