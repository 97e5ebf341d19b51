"""`begin_call`: a request whose outcome goes to a receiver needs no task, and has the same outcomes as any other."""

import asyncio
import gc
import weakref
from types import SimpleNamespace

import pytest

import streaminfer as si
from streaminfer.protocols import adapt
from streaminfer.testing import HANG, ScriptedBackend

pytestmark = pytest.mark.uncompiled


class Told:
    """Receiver that records the outcomes of its requests."""

    def __init__(self):
        self.ends = []

    def __call__(self, response, error):
        self.ends.append(error if response is None else float(response.outputs))


def stack_of(loop, model, *around, **settings):
    """Return a stack with a batcher around a model."""
    return si.Stack(*around, si.AdaptiveBatcher(**{"max_batch_size": 4} | settings), model, clock=loop.clock)


async def test_receiver_gets_the_response_as_the_batch_ends(loop):
    """The receiver gets the responses when the batch ends; the batch has a task, and the requests have none."""
    told = Told()
    async with stack_of(loop, ScriptedBackend(duration_s=0.01)) as stack:
        tasks = len(asyncio.all_tasks())
        for value in (1.0, 2.0):
            stack.begin_call(si.Request(value), told)
        await asyncio.sleep(0.005)
        assert len(asyncio.all_tasks()) == tasks + 1
        assert told.ends == []
        await asyncio.sleep(0.006)

    assert told.ends == [1.0, 2.0]


async def test_receiver_gets_the_error(loop):
    told = Told()
    async with stack_of(loop, ScriptedBackend(ValueError("broken"), HANG)) as stack:
        stack.begin_call(si.Request(1.0), told)
        await asyncio.sleep(0.01)
        stack.begin_call(si.Request(2.0, deadline_ns=loop.clock() + 1_000_000), told)
        await asyncio.sleep(0.01)

    assert [type(end) for end in told.ends] == [si.BackendError, si.DeadlineExceeded]


async def test_begin_call_raises_if_rejected(loop):
    """`begin_call` raises if the request is rejected, and the receiver gets nothing."""
    told = Told()
    stack = stack_of(loop, ScriptedBackend(HANG), max_queue_size=1)
    with pytest.raises(si.Closed):
        stack.begin_call(si.Request(1.0), told)
    async with stack:
        stack.begin_call(si.Request(1.0), told)
        await asyncio.sleep(0.001)
        stack.begin_call(si.Request(2.0), told)
        with pytest.raises(si.Overloaded):
            stack.begin_call(si.Request(3.0), told)
        assert told.ends == []
        await stack.stop(drain=False)

    assert [type(end) for end in told.ends] == [si.Closed, si.Closed]


@pytest.mark.parametrize("pause_s", [0.0, 0.001], ids=["queued", "running"])
async def test_a_cancelled_request_leaves_its_place(loop, pause_s):
    """A cancelled request leaves the queue or its batch, which is cancelled too; its receiver gets one cancellation."""
    told = Told()
    async with stack_of(loop, ScriptedBackend(HANG), max_queue_size=1) as stack:
        call = stack.begin_call(si.Request(1.0), told)
        await asyncio.sleep(pause_s)
        call.cancel()
        call.cancel()
        assert [type(end) for end in told.ends] == [asyncio.CancelledError]
        await asyncio.sleep(0.001)
        statistics = stack.statistics().layers["AdaptiveBatcher"]

    assert (statistics.cancelled, statistics.queued, statistics.running) == (1, 0, 0)
    assert len(told.ends) == 1


async def test_layers_see_begun_calls(loop):
    """A layer is entered and exited once for each begun call."""
    telemetry, told = si.Telemetry("told"), Told()
    async with stack_of(loop, ScriptedBackend([1.0], ValueError("broken")), telemetry) as stack:
        for _ in range(2):
            stack.begin_call(si.Request(1.0), told)
            await asyncio.sleep(0.01)
    outcomes = telemetry.statistics().outcomes

    assert [type(end) for end in told.ends] == [float, si.BackendError]
    assert sum(outcomes.values()) == 2


async def test_only_a_batcher_offers_begin_call(loop):
    """Only a stack with a batcher offers `begin_call`, and only if no subclass replaces its `call`."""

    class Counted(si.Stack):
        async def call(self, request, *, timeout_s=None):
            return await super().call(request, timeout_s=timeout_s)

    async def echo(request):
        return si.Response(request.inputs)

    service = SimpleNamespace(call=echo)

    assert stack_of(loop, ScriptedBackend()).begin_call is not None
    assert si.Stack(service).begin_call is None
    assert adapt(service).begin_call is None
    assert Counted(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend()).begin_call is None


async def test_ended_request_is_freed_without_the_collector(loop):
    """A completed request is in no reference cycle; cycles would leave the collector some thousand objects a second."""
    told = Told()
    gc.collect()
    gc.disable()
    try:
        async with stack_of(loop, si.CpuBackend(lambda values: values, executor="inline")) as stack:
            request = si.Request(1.0)
            stack.begin_call(request, told)
            await asyncio.sleep(0.02)
            left = weakref.ref(request)
            del request
            assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "failure",
    [LookupError("of the receiver"), asyncio.CancelledError("of the receiver"), GeneratorExit("of the receiver")],
    ids=["error", "cancelled", "interrupt"],
)
async def test_a_receiver_that_fails_harms_no_other_request(loop, failure):
    """If a receiver raises, the other requests of its batch complete, and the loop's exception handler is called."""
    reported, told = [], Told()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))

    def fail(response, error):
        raise failure

    for model in (ScriptedBackend(duration_s=0.01), ScriptedBackend(ConnectionError("broken"))):
        async with stack_of(loop, model) as stack:
            for receive in (fail, told):
                stack.begin_call(si.Request(1.0), receive)
            await asyncio.sleep(0.1)

    assert [type(end) for end in told.ends] == [float, si.BackendError]
    assert [str(error) for error in reported] == ["of the receiver"] * 2


async def test_batch_that_never_ran_is_not_learned_from(loop):
    """A batch whose caller leaves before its first step takes no time, so the service time does not learn from it."""
    batcher = si.AdaptiveBatcher(max_batch_size=1)
    async with si.Stack(batcher, ScriptedBackend(duration_s=0.1), clock=loop.clock) as stack:
        await stack(1.0)
        for _ in range(5):
            call = stack.begin_call(si.Request(1.0), Told())
            loop.call_soon(call.cancel)  # after the dispatch, before the first step of the batch
            await asyncio.sleep(0.5)

        assert batcher.statistics().abandoned_batches == 5
        assert batcher.service_time.fitted().seconds(1) == pytest.approx(0.1)
        assert batcher.decision_log().batch_ok.tolist() == [True, *[False] * 5]
