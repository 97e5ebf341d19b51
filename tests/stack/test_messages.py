"""Messages for wrong use: each names the mistake and says what to write instead."""

import asyncio
import copy
import functools
import json
import pickle
import time
import warnings
from collections.abc import Awaitable

import numpy as np
import pytest

import streaminfer as si
from streaminfer._internal.validation import brief
from streaminfer.caching.tiers import DiskTier
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.sync_layer import SyncLayer
from streaminfer.testing import ScriptedBackend, run
from streaminfer.testing.faults import FaultPlan, partial

pytestmark = pytest.mark.uncompiled


class Service:
    async def call(self, request):
        return request


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ((si.AdaptiveBatcher, ScriptedBackend()), r"got the class AdaptiveBatcher: AdaptiveBatcher\(\.\.\.\) makes"),
        ((ScriptedBackend,), r"got the class ScriptedBackend"),
        (([si.Telemetry(), ScriptedBackend()],), r"one by one, got a list of 2: Stack\(\*layers\)"),
        (
            (ScriptedBackend(), si.AdaptiveBatcher(max_batch_size=1)),
            r"the order that works: Stack\(AdaptiveBatcher, ScriptedBackend\)",
        ),
        (
            (si.AdaptiveBatcher(max_batch_size=1), si.Telemetry(), ScriptedBackend()),
            r"Telemetry cannot wrap .* works: Stack\(Telemetry, AdaptiveBatcher, ScriptedBackend\)",
        ),
        (
            (si.AdaptiveBatcher(max_batch_size=1), si.ConcurrencyLimit(), ScriptedBackend()),
            r"ConcurrencyLimit cannot wrap .* works: Stack\(ConcurrencyLimit, AdaptiveBatcher, ScriptedBackend\)",
        ),
        (
            (si.AdaptiveBatcher(max_batch_size=1), Service()),
            r"AdaptiveBatcher cannot wrap .*; AdaptiveBatcher goes into what the service calls, such as each route",
        ),
        (
            (Service(), si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend()),
            r"before the last one, got .* \(Service\); a service comes last: layers after it go into what it calls",
        ),
    ],
)
def test_wrong_layers(layers, says):
    with pytest.raises(TypeError, match=says):
        si.Stack(*layers)


class Plain:
    """Backend with a synchronous ``infer``."""

    def infer(self, batch):
        return batch.inputs


class PlainByName(Plain):
    """The same backend, with a decorator that keeps the name of ``infer``."""

    @functools.wraps(Plain.infer)
    def infer(self, batch):
        return Plain.infer(self, batch)


@pytest.mark.parametrize("backend", [Plain(), PlainByName()], ids=["plain", "decorated"])
@pytest.mark.parametrize(
    "layers", [(), (si.Telemetry(),), (si.CircuitBreaker(),)], ids=["bare", "telemetry", "breaker"]
)
def test_sync_infer_is_rejected_at_construction(backend, layers):
    """A backend without an async ``infer`` is rejected when the stack or batcher is made, not at the first request."""
    says = r"a backend with an `async def infer` \(CpuBackend runs a plain function .* whose infer is not async"
    with pytest.raises(TypeError, match=f"^layers: expected {says}"):
        si.Stack(*layers, backend)
    with pytest.raises(TypeError, match=f"^inner: expected {says}"):
        si.AdaptiveBatcher(max_batch_size=1).wrap(backend)


def test_infer_may_return_an_awaitable():
    """A plain ``infer`` is accepted if it is annotated to return an awaitable, or if it wraps an async function."""

    async def answer(_self, batch):
        return batch.inputs

    class Annotated:
        def infer(self, batch) -> Awaitable:
            return answer(self, batch)

    class Decorated:
        @functools.wraps(answer)
        def infer(self, batch):
            return answer(self, batch)

    async def main(loop):
        for backend in (Annotated(), Decorated()):
            async with si.Stack(backend, clock=loop.clock) as stack:
                assert await stack(1.0) == 1.0

    run(main)


def in_a_stack(*layers):
    async def main(loop):
        async with si.Stack(*layers, clock=loop.clock) as stack:
            await stack(1.0)

    run(main)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("start", r"UsersBackend\.start: expected an `async def`, whose call is awaited, got None"),
        ("stop", r"UsersBackend\.stop: expected an `async def`, whose call is awaited, got None"),
        ("example_inputs", r"example_inputs: expected None, or streaminfer\.protocols\.ExampleInputs\(inputs, infer\)"),
    ],
)
def test_backend_method_with_wrong_result_raises(method, says):
    """A method of a user's backend that returns anything but its specified result raises a `TypeError`."""

    class UsersBackend:
        async def infer(self, batch):
            return batch.inputs

    def plain(_self, **_options):
        return [1.0] if method == "example_inputs" else None

    setattr(UsersBackend, method, plain)

    with pytest.raises(TypeError, match=says):
        in_a_stack(si.AdaptiveBatcher(max_batch_size=1), UsersBackend())


class Answers(SyncLayer):
    """Layer whose ``exit`` returns outputs in place of a response."""

    def exit(self, request, token, outcome, now_ns):
        return outcome.outputs


class AnswersAlone:
    """Service that returns outputs in place of a response."""

    async def call(self, request):
        return request.inputs


@pytest.mark.parametrize(
    "layers", [(Answers(), ScriptedBackend()), (AnswersAlone(),), (si.Telemetry(), AnswersAlone())]
)
def test_a_response_that_is_none(layers):
    with pytest.raises(
        TypeError, match=r"response: expected a Response, from a service's call and a layer's exit, got"
    ):
        in_a_stack(*layers)


def test_a_stack_of_an_event_loop_that_has_ended():
    stack = si.Stack(ScriptedBackend())
    asyncio.run(stack.start())

    async def call():
        with pytest.raises(si.Closed, match="belongs to an event loop that has ended"):
            await stack(1.0)

    asyncio.run(call())


def test_call_with_inputs():
    async def main(loop):
        async with si.Stack(ScriptedBackend(), clock=loop.clock) as stack:
            with pytest.raises(
                TypeError, match=r"request: expected a Request \(calling the stack itself takes inputs\)"
            ):
                await stack.call(1.0)

    run(main)


def test_with_instead_of_async_with():
    with (
        pytest.raises(TypeError, match=r"`async with`; synchronous code: `with stack.blocking\(\)"),
        si.Stack(Service()),
    ):
        pass


@pytest.mark.parametrize("layers", [(), (si.AdaptiveBatcher(max_batch_size=1),)])
def test_relative_deadline_is_explained_in_the_error(layers):
    """A deadline that looks relative raises an error that says which clock deadlines refer to."""

    async def main(loop):
        async with si.Stack(*layers, ScriptedBackend(), clock=loop.clock) as stack:
            with pytest.raises(si.DeadlineExceeded, match=r"deadline_ns is an instant of the stack's clock"):
                await stack.call(si.Request(1.0, deadline_ns=50_000_000))
            with pytest.raises(si.DeadlineExceeded, match=r"the deadline had passed 0\.001000 s before arrival$"):
                await stack.call(si.Request(1.0, deadline_ns=loop.now_ns - 1_000_000))
            with pytest.raises(si.DeadlineExceeded, match=r"the deadline had passed before arrival$"):
                await stack(1.0, timeout_s=0.0)

    run(main, now_ns=10**12)


@pytest.mark.parametrize(("slo_s", "warned"), [(50, True), (50.0, False), (1, False), (0.05, False)])
def test_slo_in_milliseconds_is_warned_of(slo_s, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        si.AdaptiveBatcher(max_batch_size=1, slo_s=slo_s)
    assert [str(one.message).startswith("slo_s=50 is 50 seconds: write 0.05") for one in caught] == [True] * warned


def test_statistics_of_an_unknown_layer_raise():
    stack = si.Stack(si.Telemetry(), si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend())
    with pytest.raises(KeyError, match=r"no layer of this stack is 'Batcher'.*'Telemetry', 'AdaptiveBatcher'"):
        stack.statistics()["Batcher"]


def test_statistics_to_dict_before_and_after_start():
    """Before a start and after it, statistics become dictionaries that JSON can write."""
    stack = si.Stack(si.Telemetry(), si.AdaptiveBatcher(max_batch_size=2), si.CpuBackend(np.negative, example=1.0))
    assert json.loads(json.dumps(stack.statistics().to_dict()))["state"] == "new"

    async def main():
        async with stack:
            await stack(1.0)
            return stack.statistics().to_dict()

    plain = json.loads(json.dumps(asyncio.run(main())))
    assert plain["layers"]["AdaptiveBatcher"]["succeeded"] == 1
    assert plain["layers"]["CpuBackend"]["rows"] == 1


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**7,
        b"x" * 10**7,
        bytearray(10**7),
        [0.5] * 10**6,
        [[1] * 1000] * 1000,
        {n: n for n in range(10**5)},
        np.ones(10**6),
    ],
    ids=["str", "bytes", "bytearray", "list", "nested", "dict", "array"],
)
def test_message_shortens_a_large_wrong_input(value):
    with pytest.raises(TypeError) as caught:
        si.AdaptiveBatcher(max_batch_size=value)
    assert len(str(caught.value)) < 1000
    with pytest.raises(si.InvalidInput) as caught:
        si.Request(1.0, priority=value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", [1, "short", [1, 2], {"b": 1, "a": 2}, (1,), None, b"x", {"a": [1]}])
def test_short_values_are_shown_whole(value):
    assert brief(value) == repr(value)


def test_run_inside_a_running_loop():
    async def main():
        with pytest.raises(RuntimeError, match=r"one runs in this thread already: .*in a thread"):
            run(lambda _loop: asyncio.sleep(0))

    asyncio.run(main())


def test_deadline_error_names_the_last_route():
    """The text of `DeadlineExceeded` from a router names the route whose time ran out.

    The last route had 0.05 s of the 0.2 s: the text has the time of the route, and the note has the whole time.
    """

    def route(name):
        return si.Route(name, si.Stack(si.AdaptiveBatcher(max_batch_size=1, policy="greedy"), Slow(name)))

    class Slow:
        def __init__(self, name):
            self.name = name

        async def infer(self, batch):
            await asyncio.sleep(10)

    async def main(loop):
        async with si.Stack(si.FallbackRouter(route("large"), route("small")), clock=loop.clock) as stack:
            with pytest.raises(si.DeadlineExceeded) as caught:
                await stack(1.0, timeout_s=0.2)
        return str(caught.value), caught.value.__notes__

    text, notes = run(main)
    assert text == "the deadline passed 0.050000 s after small got the request, its batch was running"
    routes = "large: attempt_timeout, small: deadline_exceeded"
    assert notes == [f"no other route responded in the 0.200000 s since the request came ({routes})"]


def test_no_order_suggested_for_layer_that_never_fits():
    """The error for a layer that fits in no order suggests no other order.

    A fault plan for batches cannot wrap a service, whatever the order of the other layers.
    """
    plan = FaultPlan(partial())
    layers = plan, si.AdaptiveBatcher(max_batch_size=2), si.CircuitBreaker(), ScriptedBackend()

    with pytest.raises(TypeError, match="FaultPlan cannot wrap") as raised:
        si.Stack(*layers)

    assert "the order that works" not in str(raised.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda clock: si.AdaptiveBatcher(max_batch_size=2, clock=clock),
        lambda clock: si.Telemetry(clock=clock),
        lambda clock: si.CpuBackend(len, clock=clock),
        lambda clock: si.Stack(ScriptedBackend(), clock=clock),
        lambda clock: si.caching.RetentionLog(wall_clock=clock),
        lambda clock: DiskTier("tier", max_bytes=2**20, wall_clock=clock),
        lambda clock: StoredKeys(":memory:", master=b"m" * 32, wall_clock=clock),
    ],
    ids=["batcher", "telemetry", "backend", "stack", "retention log", "tier", "keys"],
)
def test_clock_in_seconds_is_rejected_at_construction(make):
    """A clock in seconds is rejected: latencies would be some nanoseconds, and each deadline an error of its caller."""
    with pytest.raises(TypeError, match=r"clock\(\): expected a whole number of nanoseconds"):
        make(time.monotonic)


def yields(batch):
    yield from batch


async def yields_later(batch):
    for row in batch:
        yield row


@pytest.mark.parametrize("function", [yields, yields_later])
@pytest.mark.parametrize(
    "make",
    [si.CpuBackend, lambda fn: si.AdaptiveBatcher(max_batch_size=2).wrap(fn)],
    ids=["backend", "batcher"],
)
def test_generator_is_rejected_as_batch_function(make, function):
    """A generator is no batch function: its call ends before it computes a row, so each of its batches would fail."""
    with pytest.raises(
        TypeError, match="a function that ends when its work does, not a generator, got <function yield"
    ):
        make(function)


@pytest.mark.parametrize("send", [pickle.dumps, copy.deepcopy])
@pytest.mark.parametrize("of", [lambda stack: stack, si.Stack.blocking], ids=["stack", "blocking"])
def test_pickled_stack_error_names_the_stack(send, of):
    """The error for a stack that is pickled or copied names the stack, not a lock or a module inside it."""
    with pytest.raises(TypeError, match="a Stack cannot be copied or pickled: make one where it is used"):
        send(of(si.Stack(si.AdaptiveBatcher(max_batch_size=2), si.CpuBackend(np.negative))))
