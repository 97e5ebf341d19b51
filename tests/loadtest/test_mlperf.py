"""MLPerf LoadGen as a driver."""

import asyncio
import math

import pytest

import streaminfer as si
from streaminfer.loadtest import Sample, run_mlperf
from streaminfer.protocols import Node

SETTINGS = {"inputs": [1.0, 2.0], "rate": 100.0, "duration_s": 0.5}


async def echo(x):
    return x


async def failing(_x):
    raise ValueError("never")


class Told(Node):
    """Service that reports the ends of requests to a callback, and is never awaited.

    Args:
        tell: called with the request and the callback for its response and its error.
    """

    def __init__(self, tell):
        self.tell = tell
        self.cancelled = 0

    async def call(self, _request):
        raise NotImplementedError

    @property
    def begin_call(self):
        return self.begin

    def begin(self, request, receive):
        self.tell(request, receive)
        return self

    def cancel(self):
        self.cancelled += 1


def fail(_request, receive):
    receive(None, ValueError("never"))


def answer(_request, receive):
    receive(si.Response(1.0), None)


def test_run_of_less_than_a_millisecond():
    """A run of less than a millisecond lasts at least one, because LoadGen ends the process if it gets 0 ms."""
    result = asyncio.run(run_mlperf(echo, slo_s=5.0, **SETTINGS | {"duration_s": 1e-5}))

    assert result.p99_s > 0


def test_fast_service_is_measured():
    """The p99 of a fast service is below a limit of seconds."""
    result = asyncio.run(run_mlperf(echo, slo_s=5.0, **SETTINGS))

    assert 0 < result.p99_s < 5.0
    assert "Scenario : Server" in result.summary


def test_stack_creates_no_task_per_query():
    """The batcher of a stack reports the ends of requests, so no query needs a task."""

    async def main():
        made = []

        def factory(loop, coroutine, **settings):
            made.append(coroutine)
            return asyncio.Task(coroutine, loop=loop, **settings)

        async with si.Stack(si.AdaptiveBatcher(max_batch_size=8), si.CpuBackend(lambda x: 2 * x)) as stack:
            asyncio.get_running_loop().set_task_factory(factory)
            result = await run_mlperf(stack, slo_s=5.0, **SETTINGS)
            return result, stack.statistics().layers["AdaptiveBatcher"].succeeded, len(made)

    result, completed, made = asyncio.run(main())

    assert result.p99_s < 5.0
    assert completed >= 50
    assert made == 0


@pytest.mark.parametrize("service", [failing, Told(fail)], ids=["awaited", "told"])
def test_failures_are_late(service, caplog):
    """A run whose requests fail is not valid, and the log has the error."""
    result = asyncio.run(run_mlperf(service, slo_s=0.1, **SETTINGS))

    assert not result.valid
    assert result.p99_s > 1.0
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "a request of the run failed: ValueError: never"
    ]


def test_response_before_begin_returns():
    """A response before the call returns completes its query, and nothing is cancelled at the end."""
    service = Told(answer)

    assert asyncio.run(run_mlperf(service, slo_s=5.0, **SETTINGS)).p99_s < 5.0
    assert not service.cancelled


def test_request_that_never_completes_is_late(monkeypatch):
    """A request whose end is never reported is cancelled, and late."""
    monkeypatch.setattr("streaminfer.loadtest.mlperf.DRAIN_S", 0.3)
    service = Told(lambda _request, _receive: None)

    assert not asyncio.run(run_mlperf(service, slo_s=0.01, **SETTINGS)).valid
    assert service.cancelled >= 50


def test_begin_that_raises(caplog):
    """A request that cannot begin because the service is closed is late, and logs nothing."""

    def closed(_request, _receive):
        raise si.Closed("it stops")

    assert not asyncio.run(run_mlperf(Told(closed), slo_s=0.1, **SETTINGS)).valid
    assert not caplog.records


@pytest.mark.parametrize("way", ["awaited", "told"])
def test_sample_inputs_and_settings_are_sent(way):
    """The service gets the inputs of a `Sample` with its settings, however many requests there are."""
    heard = []

    class Heard(Told):
        async def call(self, request):
            heard.append(request)
            return si.Response(1.0)

        @property
        def begin_call(self):
            return self.begin if way == "told" else None

    def hear(request, receive):
        heard.append(request)
        answer(request, receive)

    sample = Sample(2.0, labels={"device": "phone"}, stages_s={"encode": 0.001}, settings={"priority": 1})
    settings = {**SETTINGS, "inputs": [sample], "rate": 600.0}

    assert asyncio.run(run_mlperf(Heard(hear), slo_s=5.0, **settings)).p99_s < 5.0
    assert len(heard) >= 300
    assert {(request.inputs, request.priority) for request in heard} == {(2.0, 1)}


@pytest.mark.parametrize("error", [asyncio.CancelledError, None], ids=["cancels itself", "hangs"])
def test_call_without_response_is_late(error, monkeypatch):
    """A call that its service cancels, or that never ends, is late, and the run ends."""
    monkeypatch.setattr("streaminfer.loadtest.mlperf.DRAIN_S", 0.3)

    async def silent(_x):
        if error is not None:
            raise error
        await asyncio.Future()

    assert not asyncio.run(run_mlperf(silent, slo_s=0.01, **SETTINGS)).valid


class Stop(BaseException):
    """Exception of an application that does not inherit from `Exception`."""


async def stop(_x):
    raise Stop


def tell_stop(_request, receive):
    receive(None, Stop())


@pytest.mark.parametrize("service", [stop, Told(tell_stop)], ids=["awaited", "told"])
def test_base_exception_ends_the_run(service):
    """The run raises an exception that does not inherit from `Exception`."""
    with pytest.raises(Stop):
        asyncio.run(run_mlperf(service, slo_s=0.01, **SETTINGS))


def test_cancelled_run_cancels_requests_in_flight():
    """A cancelled run cancels the requests in flight, and ends at the end of LoadGen's schedule."""
    sent = []

    async def hang(x):
        sent.append(asyncio.current_task())
        await asyncio.Future()

    async def main():
        test = asyncio.create_task(run_mlperf(hang, slo_s=0.01, **SETTINGS))
        while not sent:
            await asyncio.sleep(0)
        test.cancel()
        await asyncio.wait([test])
        await asyncio.wait(sent)
        return test.cancelled(), all(task.cancelled() or task.done() for task in sent)

    assert asyncio.run(main()) == (True, True)


def test_cancelled_run_sends_no_further_requests():
    """After a cancellation, the service gets no more requests, and LoadGen completes its schedule without it."""
    sent = []
    service = Told(lambda request, _receive: sent.append(request))

    async def main():
        test = asyncio.create_task(run_mlperf(service, slo_s=0.01, **SETTINGS))
        while not sent:
            await asyncio.sleep(0)
        test.cancel()
        while not service.cancelled:
            await asyncio.sleep(0)
        before = len(sent)
        await asyncio.wait([test])
        return before

    assert asyncio.run(main()) == len(sent) == service.cancelled


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("inputs", {}, "inputs: expected a sequence of inputs, got {}"),
        ("inputs", [], "inputs: expected at least one"),
        ("rate", math.inf, "rate: expected a number from 0.001 to 1,000,000, got inf"),
        ("rate", 1e-300, "rate: expected a number from 0.001 to 1,000,000, got 1e-300"),
        ("duration_s", 1e7, r"rate \* duration_s: expected at most 100,000,000 arrivals"),
        ("seed", 2**64, "seed: expected a whole number ≥ 1 and ≤ "),
    ],
)
def test_wrong_argument(name, value, message):
    """An argument that would end the process or never return is an error that names it."""
    with pytest.raises((ValueError, TypeError), match=message):
        asyncio.run(run_mlperf(echo, slo_s=0.1, **{**SETTINGS, name: value}))


def test_any_latency_limit_is_taken():
    """A limit of more than 31 years counts as 31 years."""
    assert asyncio.run(run_mlperf(echo, slo_s=1e300, **SETTINGS | {"duration_s": 0.05})).p99_s < 5.0


def test_endless_run_is_rejected():
    """A run of more than 31 years is an error that names the argument."""
    with pytest.raises(ValueError, match="duration_s: expected seconds > 0 and ≤ 1,000,000,000, got 1e"):
        asyncio.run(run_mlperf(echo, slo_s=0.1, **SETTINGS | {"duration_s": 1e300}))
