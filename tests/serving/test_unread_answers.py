"""Many responses to one request that no client gets are closed, wherever they were dropped."""

import asyncio
import contextlib
import json

import numpy as np
import pytest

import streaminfer as si
from streaminfer.protocols import ModelTensors
from streaminfer.routing import Shadow
from streaminfer.serving.requests.timed_answers import TimedAnswers
from streaminfer.testing import run


class Answers:
    """Responses as clients of other services return them: open from the call on, and no generator."""

    is_closed = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        return {"n": np.array([1])}

    async def aclose(self):
        self.is_closed = True


class Service:
    """Service that opens responses after a delay, from ``after_s`` for each call, even if the call is cancelled."""

    many_answers = True

    def __init__(self, *after_s, fails_at=None):
        self.after_s, self.fails_at = list(after_s), fails_at
        self.opened = []
        self.on_open = lambda: None

    def model_tensors(self):
        tensor = si.backends.TensorSpec("x", np.dtype(np.int64), (None, 1))
        return ModelTensors((tensor,))

    async def call(self, request):
        if request.inputs == self.fails_at:
            raise ValueError("secret")
        try:
            await asyncio.sleep(self.after_s.pop(0) if self.after_s else 0.0)
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
        self.opened.append(Answers())
        self.on_open()
        return si.Response(self.opened[-1])

    @property
    def left_open(self):
        return sum(not answers.is_closed for answers in self.opened)


def ask_all(layers, service, *, requests=1, timeout_s=None):
    """Send requests one by one and close their responses; return the number of requests that got any."""

    async def main(loop):
        got = 0
        async with si.Stack(*layers, service, clock=loop.clock) as stack:
            for number in range(requests):
                try:
                    answers = await stack(np.array([number]), timeout_s=timeout_s)
                except (si.DeadlineExceeded, TypeError):
                    continue
                got += 1
                await answers.aclose()
            await asyncio.sleep(10.0)
        return got

    return run(main)


def test_cache_closes_rejected_responses():
    service = Service()

    assert ask_all([si.EdgeCache(maxsize=10, ttl_s=60.0)], service) == 0
    assert (len(service.opened), service.left_open) == (1, 0)


def test_hedge_closes_the_losing_responses():
    """A hedge closes the responses that lost, even if they come in the same turn as those that won."""
    service = Service(*[0.010] * 30, 0.500, 0.100, 0.200, 0.200 - 0.0101)

    assert ask_all([si.Hedge(max_extra=1.0)], service, requests=32) == 32
    assert len(service.opened) > 32
    assert service.left_open == 0


@pytest.mark.parametrize("callbacks", range(4))
def test_hedge_closes_answers_of_caller_that_left(callbacks):
    """A hedge closes the responses of a caller that leaves in one of the turns in which they reach the caller."""
    service = Service(*[0.010] * 30, 0.100)

    async def main(loop):
        def leave(after):
            if after:
                loop.call_soon(leave, after - 1)
            else:
                call.cancel()

        async with si.Stack(si.Hedge(max_extra=1.0), service, clock=loop.clock) as stack:
            for _ in range(30):
                await (await stack(np.array([1]))).aclose()
            service.on_open = lambda: leave(callbacks)
            call = asyncio.ensure_future(stack(np.array([1])))
            await asyncio.wait([call])
            if not call.cancelled():
                await call.result().aclose()
            await asyncio.sleep(1.0)
            return call.cancelled()

    assert run(main) or callbacks == 3
    assert len(service.opened) > 30
    assert service.left_open == 0


def test_a_shadow_closes_the_answers_to_its_copies():
    service, copy = Service(), Service()

    assert ask_all([Shadow(copy)], service, requests=3) == 3
    assert (len(copy.opened), copy.left_open) == (3, 0)


def test_stack_closes_answers_after_deadline():
    """A stack closes responses that come after the deadline."""
    service = Service(0.500)

    assert ask_all([], service, timeout_s=0.1) == 0
    assert (len(service.opened), service.left_open) == (1, 0)


def test_a_router_closes_the_answers_to_its_probes():
    slow = Service()
    slow.admission = lambda request, now_ns: si.protocols.Admission(False, "infeasible")
    fast = Service()
    router = si.FallbackRouter(si.Route("slow", slow, quality=1.0), si.Route("fast", fast, quality=0.5))

    async def main(loop):
        async with si.Stack(router, clock=loop.clock) as stack:
            for _ in range(5):
                await asyncio.sleep(1.0)
                await (await stack(np.array([1]), timeout_s=1.0)).aclose()
            await asyncio.sleep(1.0)

    run(main)

    assert slow.opened
    assert (slow.left_open, fast.left_open) == (0, 0)


def test_failing_row_leaves_no_responses_open(ask_app):
    service = Service(fails_at=2)
    app = si.serving.asgi_app({"m": si.Stack(service)})
    tensor = {"name": "x", "datatype": "INT64", "shape": [3, 1], "data": [1, 2, 3]}

    async def scenario():
        async with app:
            reply = await ask_app(app, "POST", "/v2/models/m/infer", json.dumps({"inputs": [tensor]}).encode())
            return reply.status

    assert asyncio.run(scenario()) == 500
    assert service.opened
    assert service.left_open == 0


@pytest.mark.parametrize("timeouts_s", [(0.05, None), (0.05, 0.05)], ids=["one", "all"])
def test_batch_closes_answers_of_callers_that_left(timeouts_s):
    """A batch closes the responses of callers that left, even if its backend continues after a cancellation."""
    opened = []

    class Backend:
        async def infer(self, batch):
            try:
                await asyncio.sleep(0.1)
            except asyncio.CancelledError:
                asyncio.current_task().uncancel()
            opened.extend(Answers() for _ in batch.inputs)
            return opened

    async def main(loop):
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=2), Backend(), clock=loop.clock) as stack:
            calls = [stack(number, timeout_s=timeout_s) for number, timeout_s in enumerate(timeouts_s)]
            got = await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(1.0)
        return [answers for answers in got if not isinstance(answers, si.DeadlineExceeded)]

    got = run(main)

    assert len(opened) == 2
    assert [answers for answers in opened if not answers.is_closed] == got


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("kind", ["stack", "layer", "function"])
def test_batch_closes_answers_as_their_caller_leaves(kind, is_first):
    """A batch closes the responses whose caller leaves at the moment when they come.

    The caller is cancelled just before or just after their delivery, so it never gets them. A layer around the batch
    that awaits makes no difference.
    """
    opened = []

    class Backend:
        async def infer(self, batch):
            await asyncio.sleep(0.1)
            opened.append(Answers())
            if is_first:
                call.cancel()
            else:
                asyncio.get_running_loop().call_soon(call.cancel)
            return opened

    async def main(loop):
        nonlocal call
        batcher = si.AdaptiveBatcher(max_batch_size=1, clock=loop.clock)
        layers = [si.RetryBudget()] if kind == "layer" else []
        if kind == "function":
            service = contextlib.nullcontext(batcher.wrap(Backend().infer))
        else:
            service = si.Stack(*layers, batcher, Backend(), clock=loop.clock)
        async with service as ask:
            call = asyncio.ensure_future(ask(1.0))
            await asyncio.wait([call])
            await asyncio.sleep(1.0)
        return call.cancelled()

    call = None
    assert run(main)
    assert opened[0].is_closed


@pytest.mark.parametrize("method", ["map", "rows"])
def test_failed_call_of_many_leaves_no_answers_open(method):
    """If one of many calls fails, the responses to the others do not stay open."""

    class FailsLast(Service):
        async def call(self, request):
            await asyncio.sleep(float(request.inputs))
            return await super().call(request)

    service = FailsLast(fails_at=3)

    async def main(loop):
        async with si.Stack(service, clock=loop.clock) as stack:
            with pytest.raises(ValueError, match="secret"):
                await getattr(stack, method)(np.arange(4))
            assert (len(service.opened), service.left_open) == (3, 0)

    run(main)


def test_hedged_function_closes_answers_that_lost():
    """A hedged function closes the responses that lost, even those of a call that ignores its cancellation."""
    service = Service(*[0.010] * 30, 0.500, 0.100)
    hedge = si.Hedge(max_extra=1.0)

    @hedge
    async def ask():
        return (await service.call(si.Request(1))).outputs

    async def main(loop):
        hedge.bind_clock(loop.clock)
        for _ in range(31):
            await (await ask()).aclose()
        await asyncio.sleep(1.0)

    run(main)

    assert len(service.opened) == 32
    assert service.left_open == 0


def test_answers_close_if_client_leaves_at_deadline():
    """If a client leaves at the deadline, the task that closes the responses is not cancelled before it begins."""
    answers = Answers()

    async def main(loop):
        timed = TimedAnswers(si.Response(answers), None, loop.clock)
        sent = loop.create_future()

        async def send():
            await sent
            await timed.aclose()

        sending = asyncio.ensure_future(send())
        await asyncio.sleep(0)
        sent.set_result(None)
        loop.call_soon(sending.cancel)
        timed._end()
        await asyncio.wait([sending])
        await asyncio.sleep(1.0)
        return sending.cancelled()

    assert run(main)
    assert answers.is_closed


class Batches:
    """Backend that opens responses for each row after ``after_s``; the script has other delays, or errors to raise."""

    def __init__(self, *script, after_s=0.1):
        self.script, self.after_s = list(script), after_s
        self.opened = []

    async def infer(self, batch):
        step = self.script.pop(0) if self.script else self.after_s
        if isinstance(step, Exception):
            raise step
        try:
            await asyncio.sleep(step)
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
        answers = [Answers() for _ in batch.inputs]
        self.opened += answers
        return answers

    def left_open(self, got):
        return [answers for answers in self.opened if not answers.is_closed and answers not in got]


def ask_at_once(layers, backend, timeouts_s, *, before=0):
    """Send ``before`` requests one by one, then the others at once; return the responses to the latter."""

    async def main(loop):
        async with si.Stack(*layers, backend, clock=loop.clock) as stack:
            for _ in range(before):
                await (await stack(1.0)).aclose()
            calls = [stack(1.0, timeout_s=timeout_s) for timeout_s in timeouts_s]
            got = await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(1.0)
        return [answers for answers in got if isinstance(answers, Answers)]

    return run(main)


@pytest.mark.parametrize("timeouts_s", [(None, None, None), (None, 0.05, None)], ids=["none", "one"])
def test_filled_up_batch_closes_answers_to_copies(timeouts_s):
    """A batch closes the responses to the copies that filled it up, even if a caller left while it ran."""
    backend = Batches()
    batcher = si.AdaptiveBatcher(max_batch_size=4, preferred_sizes=[4])

    got = ask_at_once([batcher], backend, timeouts_s)

    assert (len(got), len(backend.opened)) == (timeouts_s.count(None), 4)
    assert backend.left_open(got) == []


def test_batch_part_closes_answers_of_caller_that_left():
    """Part of a failed batch closes the responses of a caller that left, and those to the copies that filled it up."""
    backend = Batches(ValueError("one of them"))
    batcher = si.AdaptiveBatcher(max_batch_size=8, preferred_sizes=[1, 4, 8])

    got = ask_at_once([batcher], backend, [None, 0.05, None, None, None, None])

    assert (len(got), len(backend.opened)) == (5, 8)
    assert backend.left_open(got) == []


def test_hedge_around_backend_closes_answers_that_lost():
    """A hedge around a backend closes the responses that lost for each row of the batch."""
    backend = Batches(*[0.010] * 30, 0.500, 0.100)
    layers = [si.AdaptiveBatcher(max_batch_size=2), si.Hedge(max_extra=1.0)]

    got = ask_at_once(layers, backend, [None, None], before=30)

    assert (len(got), len(backend.opened)) == (2, 34)
    assert backend.left_open(got) == []


def test_batch_part_closes_answers_as_caller_leaves():
    """Part of a failed batch, like a whole batch, closes the responses whose caller leaves when they come.

    The caller is cancelled just before their delivery.
    """

    class Leaving(Batches):
        async def infer(self, batch):
            answers = await super().infer(batch)
            calls[0].cancel()
            return answers

    backend = Leaving(ValueError("one of them"))
    calls = []

    async def main(loop):
        async with si.Stack(si.AdaptiveBatcher(max_batch_size=2), backend, clock=loop.clock) as stack:
            calls.extend(asyncio.ensure_future(stack(1.0)) for _ in range(2))
            got = await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.sleep(1.0)
        return got

    left, other = run(main)

    assert isinstance(left, asyncio.CancelledError)
    assert len(backend.opened) == 2
    assert backend.left_open([other]) == []
