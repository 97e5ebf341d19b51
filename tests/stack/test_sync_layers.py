"""Layers that act before and after each request: their order, exactly one exit for each enter, and no coroutine."""

import ast
import asyncio
import contextlib
import inspect
import sys
from pathlib import Path

import pytest

import streaminfer
import streaminfer as si
from streaminfer.request import Response
from streaminfer.sync_layer import SyncLayer, SyncService
from streaminfer.testing import FakeClock, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


class Signature(SyncLayer):
    """Smallest custom layer: it signs each response."""

    def exit(self, request, token, outcome, now_ns):
        if isinstance(outcome, Response):
            return Response((outcome.outputs, "signed"), outcome.degraded, outcome.source, outcome.timings)
        return None


class Recorded(SyncLayer):
    """Layer that logs each enter and exit; ``fails`` names the method that raises."""

    def __init__(self, name, log, fails=""):
        self.name, self.log, self.fails = name, log, fails

    def enter(self, request, now_ns):
        self.log.append(f"{self.name} in")
        if self.fails == "enter":
            raise KeyError(self.name)
        return self.name

    def exit(self, request, token, outcome, now_ns):
        assert token == self.name
        said = type(outcome).__name__ if isinstance(outcome, BaseException) else "ok"
        self.log.append(f"{self.name} out: {said}")
        if self.fails == "exit":
            raise ValueError(self.name)


class Model:
    """Service that responds at once, fails or hangs."""

    enforces_deadline = True

    def __init__(self, behavior=None):
        self.behavior = behavior

    async def call(self, request):
        if self.behavior == "hangs":
            await asyncio.get_running_loop().create_future()
        if self.behavior == "fails":
            raise OSError("the model's")
        return Response(request.inputs)


def serve(log, last, *, fails=None, timeout_s=None, cancel=False, batched=False):
    """Send one request through three recorded layers; return its outputs or its error."""

    async def main(loop):
        layers = [Recorded(name, log, (fails or {}).get(name, "")) for name in "abc"]
        behind = [si.AdaptiveBatcher(max_batch_size=1, policy="greedy")] if batched else []
        async with si.Stack(*layers, *behind, last, clock=loop.clock) as stack:
            call = asyncio.ensure_future(stack(1.0, timeout_s=timeout_s))
            if cancel:
                await asyncio.sleep(0.01)
                call.cancel()
            return (await asyncio.gather(call, return_exceptions=True))[0]

    return run(main)


IN = ["a in", "b in", "c in"]


@pytest.mark.parametrize(
    ("given", "outcome"),
    [
        ({"last": Model()}, "ok"),
        ({"last": Model("fails")}, "OSError"),
        ({"last": Model("hangs"), "cancel": True}, "CancelledError"),
        ({"last": ScriptedBackend(), "batched": True}, "ok"),
        ({"last": ScriptedBackend(OSError("x")), "batched": True}, "BackendError"),
        ({"last": ScriptedBackend(duration_s=1.0), "batched": True, "timeout_s": 0.1}, "DeadlineExceeded"),
        ({"last": ScriptedBackend(duration_s=1.0), "batched": True, "cancel": True}, "CancelledError"),
    ],
    ids=["ok", "error", "cancelled", "batched", "batch fails", "deadline", "cancelled in a batch"],
)
def test_each_layer_exits_once_in_reverse_order(given, outcome):
    log = []
    ended = serve(log, **given)
    assert (type(ended).__name__ if isinstance(ended, BaseException) else "ok") == outcome
    assert log == [*IN, f"c out: {outcome}", f"b out: {outcome}", f"a out: {outcome}"]


@pytest.mark.parametrize("timeout_s", [0.01, 0.02], ids=["at the deadline", "before it"])
@pytest.mark.parametrize("makes", ["nothing", "response", "error"])
def test_cancel_at_deadline_is_deadline_exceeded(makes, timeout_s):
    """A caller that is cancelled at its deadline counts as `DeadlineExceeded` in the layers.

    A gRPC server cancels its handler at the client's deadline. The caller stays cancelled, whatever the layers do.
    """
    log = []

    class Default(Recorded):
        def exit(self, request, token, outcome, now_ns):
            super().exit(request, token, outcome, now_ns)
            if makes == "error" and isinstance(outcome, Exception):
                raise OSError
            return Response("default", True) if makes == "response" and isinstance(outcome, Exception) else None

    async def main(loop):
        telemetry = si.Telemetry("t")
        async with si.Stack(Default("a", log), telemetry, Model("hangs"), clock=loop.clock) as stack:
            call = asyncio.ensure_future(stack(1.0, timeout_s=timeout_s))
            await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.wait([call])
            return call.cancelled(), telemetry.statistics().outcomes

    is_late = timeout_s == 0.01
    assert run(main) == (True, {"DeadlineExceeded" if is_late else "cancelled": 1})
    assert log == ["a in", "a out: DeadlineExceeded" if is_late else "a out: CancelledError"]


def test_a_layer_that_rejects_on_entry_is_not_exited():
    log = []
    assert isinstance(serve(log, Model(), fails={"c": "enter"}), KeyError)
    assert log == [*IN, "b out: KeyError", "a out: KeyError"]


@pytest.mark.parametrize("behavior", [None, "fails"], ids=["ok", "error"])
def test_error_in_exit_is_outcome_of_outer_layers(behavior):
    """An error that a layer's `exit` raises is the outcome that the layers around it get."""
    log = []
    assert isinstance(serve(log, Model(behavior), fails={"b": "exit"}), ValueError)
    assert log[3:] == ["c out: OSError" if behavior else "c out: ok", log[4], "a out: ValueError"]


def test_a_layer_can_replace_an_error_by_a_response():
    class Default(SyncLayer):
        def exit(self, request, token, outcome, now_ns):
            return Response("default", True) if isinstance(outcome, Exception) else None

    class Closed(SyncLayer):
        def enter(self, request, now_ns):
            raise si.errors.Closed("always")

    async def main(loop):
        replies = []
        for layers in ([Default(), Model("fails")], [Default(), Closed(), Model()]):
            async with si.Stack(*layers, clock=loop.clock) as stack:
                replies += [await stack(1.0), (await stack.call(si.Request(1.0))).degraded]
        replies.append((await Default().wrap(Model("fails")).call(si.Request(1.0))).outputs)
        return replies

    assert run(main) == ["default", True, "default", True, "default"]


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in a stack"])
def test_custom_layer_changes_the_response(alone):
    async def main(loop):
        if alone:
            return (await Signature().wrap(Model()).call(si.Request(1.0))).outputs
        async with si.Stack(Signature(), Model(), clock=loop.clock) as stack:
            assert (await stack.call(si.Request(2.0))).outputs == (2.0, "signed")
            return await stack(1.0)

    assert run(main) == (1.0, "signed")
    with pytest.raises(TypeError, match="inner: expected a service"):
        Signature().wrap(ScriptedBackend())


def test_invalid_request_skips_ordinary_layers():
    """Before the request is validated, only layers with `sees_invalid` are entered."""

    class Checks(Model):
        def validate(self, request):
            raise si.InvalidInput("inputs: bad")

    async def main(loop):
        telemetry, log = si.Telemetry("faces"), []
        async with si.Stack(telemetry, Recorded("a", log), Checks(), clock=loop.clock) as stack:
            with pytest.raises(si.InvalidInput):
                await stack(1.0)
        return dict(telemetry.statistics().outcomes), log

    assert run(main) == ({"InvalidInput": 1}, [])


def test_layer_with_its_own_clock_reads_that_clock():
    clock, seen = FakeClock(), []

    class Reads(SyncLayer):
        def bind_clock(self, _):
            self.clock = clock

        def enter(self, request, now_ns):
            seen.append(now_ns)

        def exit(self, request, token, outcome, now_ns):
            seen.append(now_ns)

    async def main(loop):
        clock.advance(7.0)
        async with si.Stack(Reads(), Model(), clock=loop.clock) as stack:
            await stack(1.0)

    run(main)
    assert seen == [clock(), clock()]


def test_layers_that_await_nothing_are_joined():
    """A layer that awaits nothing wraps services as a `SyncService`; a limit with a queue, which awaits, does not."""
    model = Model()
    for layer in (si.Telemetry(), si.ConcurrencyLimit(), si.CircuitBreaker(), si.RateLimit(1.0), Signature()):
        assert isinstance(layer.wrap(model), SyncService), layer
    assert not isinstance(si.ConcurrencyLimit(max_wait_s=1.0).wrap(model), SyncService)


@contextlib.contextmanager
def counted_frames(names):
    """Add the qualified names of the coroutines that run inside the block to ``names``."""
    frames = {}

    def on_call(frame, event, _):
        if event == "call" and frame.f_code.co_flags & inspect.CO_COROUTINE:
            frames[id(frame)] = frame

    sys.setprofile(on_call)
    try:
        yield
    finally:
        sys.setprofile(None)
        names += [frame.f_code.co_qualname for frame in frames.values()]


def frames_of(*layers):
    """Return the coroutines of one request, without those of the test."""
    names = []

    async def main(loop):
        async with si.Stack(*layers, clock=loop.clock) as stack:
            await stack(1.0)
            with counted_frames(names):
                await stack(2.0)

    run(main)
    return [name for name in names if "<locals>" not in name]


def test_joined_layers_cost_no_coroutine():
    """Layers that await nothing add no coroutine to a request, however many wrap the batcher or the service."""

    def many():
        return si.Telemetry(), si.RateLimit(100.0), si.ConcurrencyLimit(), Signature(), si.CircuitBreaker()

    def batched():
        return si.AdaptiveBatcher(max_batch_size=1, policy="greedy"), ScriptedBackend()

    assert frames_of(*many(), *batched()) == frames_of(*batched())
    assert frames_of(*many(), Model()) == ["Stack.__call__", "Model.call"]


@pytest.mark.parametrize("name", ["enter", "exit"])
def test_async_method_of_sync_layer_raises(name):
    """A method of a `SyncLayer` that would have to be awaited raises a `TypeError`.

    A check in such a method would pass everything, because the stack does not await layers of this kind.
    """

    async def method(self, *_):
        raise si.InvalidInput("no")

    with pytest.raises(TypeError, match=rf"Checks\.{name}: expected a plain function"):
        type("Checks", (SyncLayer,), {name: method})


def test_package_layers_declare_their_fingerprint():
    """Each layer of the package that has an `exit` declares what it makes of responses: its `fingerprint`.

    Without it, a cache around the layer cannot tell its responses from others, and a cache with tiers rejects it.
    """
    root = Path(streaminfer.__file__).parent
    layers = {}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.ClassDef) and "SyncLayer" in {getattr(base, "id", "") for base in node.bases}:
                methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
                names = {one.targets[0].id for one in node.body if isinstance(one, ast.Assign)}
                layers[node.name] = "exit" not in methods or "fingerprint" in names

    assert {"Outcomes", "Tracing"} <= layers.keys()
    assert all(layers.values()), layers
