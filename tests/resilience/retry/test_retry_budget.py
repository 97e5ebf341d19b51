"""Retries: which calls are retried, when, and the budget that limits them to a share of the traffic."""

import asyncio
import inspect
import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streaminfer as si
from streaminfer.protocols import is_backend, is_service
from streaminfer.request import Batch, Request, Response
from streaminfer.resilience import _call_budget_cy as compiled
from streaminfer.resilience.retry import retry_budget as retry
from streaminfer.resilience.retry.retry_budget import RetryBudget
from streaminfer.testing import HANG, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

S = 10**9
MS = 10**6


class Service:
    """Service that responds or fails by script, each time after ``takes_s``."""

    def __init__(self, *script, takes_s=0.0, **more):
        self.script = list(script)
        self.takes_s = takes_s
        self.asked_at = []
        self.__dict__.update(more)

    async def call(self, request):
        loop = asyncio.get_running_loop()
        self.asked_at.append(round(loop.time(), 6))
        if self.takes_s:
            await asyncio.sleep(self.takes_s)
        step = self.script.pop(0) if self.script else 1.0
        if isinstance(step, BaseException):
            raise step
        return Response(step)


def asked(service, budget, *requests, now_ns=0):
    """Send requests one after another; return the outputs or the error class of each, without a list if it is one."""
    ended = []

    async def main(loop):
        budget.bind_clock(loop.clock)
        retried = budget.wrap(service)
        for request in requests or [Request(1.0)]:
            try:
                ended.append((await retried.call(request)).outputs)
            except Exception as error:
                ended.append(type(error))

    run(main, now_ns=now_ns)
    return ended if len(ended) > 1 else ended[0]


def not_retried(budget):
    return {why: count for why, count in budget.statistics().not_retried.items() if count}


class Marked(Exception):
    def __init__(self, retryable):
        super().__init__()
        self.retryable = retryable


def caused(error, cause):
    error.__cause__ = cause
    return error


# -- which ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "settings", "retried"),
    [
        (si.BackendError(), {}, True),
        (si.Overloaded(), {}, True),
        (KeyError(), {}, False),
        (si.InvalidInput(), {}, False),
        (si.DeadlineExceeded(), {}, False),
        (si.Closed(), {}, False),
        (si.CircuitOpen(), {}, False),
        (Marked(True), {}, True),
        (Marked("yes"), {}, False),
        (caused(si.BackendError(), Marked(False)), {}, False),
        (caused(KeyError(), Marked(True)), {}, True),
        (KeyError(), {"retryable": LookupError}, True),
        (KeyError(), {"retryable": (ValueError, LookupError)}, True),
        (si.BackendError(), {"retryable": KeyError}, False),
        (si.CircuitOpen(), {"retryable": Exception}, False),
        (si.InvalidInput(), {"retryable": (ValueError, si.StreamInferError)}, False),
        (si.Overloaded(), {"retryable": si.StreamInferError}, True),
        (si.CircuitOpen(), {"retryable": (Exception, si.CircuitOpen)}, True),
        (si.DeadlineExceeded(), {"retryable": si.DeadlineExceeded}, True),
        (si.DeadlineExceeded(), {"retryable": TimeoutError}, False),
        (KeyError(), {"retryable": lambda error: isinstance(error, KeyError)}, True),
        (si.BackendError(), {"retryable": lambda error: False}, False),
        (Marked(True), {"retryable": lambda error: False}, False),
    ],
    ids=lambda value: re.sub(r" at 0x[0-9a-f]+", "", repr(value)),  # the same in each process that collects them
)
def test_which_errors_are_retried(error, settings, retried):
    service, budget = Service(error), RetryBudget(**settings)
    assert asked(service, budget) == (1.0 if retried else type(error))
    assert len(service.asked_at) == 1 + retried
    assert not_retried(budget) == ({} if retried else {"retryable": 1})
    assert budget.statistics().succeeded_after_retry == retried


def test_cancellation_is_never_retried():
    """Errors that end a task, such as `CancelledError`, are never retried, whatever `retryable` says."""
    budget = RetryBudget(retryable=BaseException)
    assert not budget.is_retryable(asyncio.CancelledError())
    assert not budget.is_retryable(KeyboardInterrupt())

    async def main(_):
        service = Service(takes_s=1.0)
        task = asyncio.ensure_future(budget.wrap(service).call(Request(1.0)))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(service.asked_at) == 1

    run(main)
    assert budget.statistics().retries == 0


@pytest.mark.parametrize(
    ("declared", "behind", "stream_id", "retried"),
    [
        (None, None, None, True),
        (None, None, "camera", False),
        (None, True, "camera", True),
        (None, False, None, False),
        (True, None, "camera", True),
        (True, False, None, True),
        (False, True, None, False),
    ],
)
def test_which_requests_are_repeated(declared, behind, stream_id, retried):
    service = Service(si.BackendError(), **({} if behind is None else {"idempotent": behind}))
    budget = RetryBudget(idempotent=declared)
    ended = asked(service, budget, Request(1.0, stream_id=stream_id))
    assert ended == (1.0 if retried else si.BackendError)
    assert not_retried(budget) == ({} if retried else {"repeatable": 1})


def test_last_error_is_raised_after_max_attempts():
    service = Service(si.BackendError("a"), si.BackendError("b"), si.Overloaded("c"), 4.0)
    budget = RetryBudget(max_attempts=3)
    assert asked(service, budget) is si.Overloaded
    assert len(service.asked_at) == 3
    assert not_retried(budget) == {"attempts": 1}
    assert budget.statistics().succeeded_after_retry == 0
    assert asked(Service(si.BackendError()), RetryBudget(max_attempts=1)) is si.BackendError


# -- when -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [3, np.int64(3)], ids=["int", "numpy"])
def test_wait_is_retry_after_plus_doubling_backoff(seed):
    """A retry waits for the ``retry_after_s`` of the error, plus a jittered backoff that doubles each time."""
    service = Service(si.BackendError(), si.BackendError(), si.Overloaded(retry_after_s=0.2))
    budget = RetryBudget(max_attempts=4, backoff_s=0.1, seed=seed)
    draw = random.Random(3)
    waits = [0.1, 0.2, 0.4]
    expected = [0.0]
    for wait, asks in zip(waits, [0.0, 0.0, 0.2], strict=True):
        expected.append(expected[-1] + asks + wait * (0.5 + 0.5 * draw.random()))
    assert asked(service, budget) == 1.0
    assert service.asked_at == pytest.approx(expected, abs=2e-6)
    assert 0.05 <= expected[1] <= 0.1


def test_retry_without_backoff_is_immediate():
    service = Service(si.BackendError())
    asked(service, RetryBudget())
    assert service.asked_at == [0.0, 0.0]


@pytest.mark.parametrize(("left_ms", "retried"), [(39, False), (40, False), (41, True)])
def test_no_retry_if_attempt_outlasts_time_left(left_ms, retried):
    """A retry is not sent if an attempt usually takes longer than the time left before the deadline."""
    budget = RetryBudget()
    service = Service(1.0, si.BackendError(), takes_s=0.020)
    ended = asked(service, budget, Request(1.0), Request(1.0, deadline_ns=20 * MS + left_ms * MS))
    assert ended == [1.0, 1.0 if retried else si.BackendError]
    assert not_retried(budget) == ({} if retried else {"time": 1})
    assert budget.statistics().usual_s == pytest.approx(0.02)


@pytest.mark.parametrize(("deadline_ms", "retried"), [(None, True), (301, True), (300, False)])
def test_no_retry_if_the_wait_exceeds_the_deadline(deadline_ms, retried):
    budget = RetryBudget()
    deadline_ns = None if deadline_ms is None else deadline_ms * MS
    service = Service(si.Overloaded(retry_after_s=0.3))
    assert asked(service, budget, Request(1.0, deadline_ns=deadline_ns)) == (1.0 if retried else si.Overloaded)


def test_wait_is_limited_by_max_wait_s():
    """A request is not retried if the wait before the next attempt would exceed `max_wait_s`."""
    budget = RetryBudget(max_wait_s=2.0)
    assert asked(Service(si.Overloaded(retry_after_s=2.5)), budget) is si.Overloaded
    assert not_retried(budget) == {"time": 1}
    assert asked(Service(si.Overloaded(retry_after_s=2.0)), RetryBudget(max_wait_s=2.0)) == 1.0


def test_backoff_counts_toward_max_wait_s():
    outcomes = [
        asked(Service(si.BackendError("gone")), RetryBudget(backoff_s=4.0, max_wait_s=longest_s, seed=1))
        for longest_s in (1.9, 4.0)
    ]
    assert outcomes == [si.BackendError, 1.0]


def test_retry_attributes_of_foreign_errors_are_used():
    """The attributes ``retryable`` and ``retry_after_s`` of any error decide whether and when it is retried."""
    rejection = ConnectionError("busy")
    rejection.retryable, rejection.retry_after_s = True, 0.3
    service = Service(rejection)
    assert asked(service, RetryBudget()) == 1.0
    assert service.asked_at == [0.0, 0.3]


def test_retry_after_s_that_is_not_a_number_is_ignored():
    """An error of another library with a ``retry_after_s`` that is no number is retried without this wait."""
    rejection = ConnectionError("busy")
    rejection.retryable, rejection.retry_after_s = True, "Wed, 21 Oct 2026 07:28:00 GMT"
    service = Service(rejection)
    assert asked(service, RetryBudget()) == 1.0
    assert service.asked_at == [0.0, 0.0]


# -- how many ---------------------------------------------------------------------------------------------------


def test_a_storm_of_failures_adds_a_tenth_to_the_load():
    service = Service(*[si.BackendError()] * 3000)
    budget = RetryBudget(max_attempts=5, min_per_s=0.0)
    asked(service, budget, *[Request(1.0)] * 1000)
    assert len(service.asked_at) == 1100
    seen = budget.statistics()
    assert (seen.requests, seen.retries) == (1000, 100)
    assert seen.left == pytest.approx(0.0)
    assert sum(not_retried(budget).values()) == 1000
    assert not_retried(budget)["throttled"] > 900


def test_a_quiet_service_may_retry_now_and_then():
    budget = RetryBudget(ratio=0.0, min_per_s=0.2)
    service = Service(*[si.BackendError()] * 20)
    asked(service, budget, *[Request(1.0)] * 3)
    assert budget.statistics().retries == 2


def test_budget_of_old_requests_expires(clock):
    """Requests of more than ten seconds ago earn no retries."""
    budget = RetryBudget(min_per_s=0.0, clock=clock)
    for _ in range(1000):
        budget.count()
    assert budget.try_acquire()
    clock.advance(9.0)
    assert budget.try_acquire()
    clock.advance(1.0)
    assert not budget.try_acquire()
    assert budget.statistics().left == pytest.approx(-1.0)
    clock.advance(9.0)
    budget.count()
    assert budget.statistics().left == pytest.approx(0.1)


def test_services_of_one_budget_share_it():
    budget = RetryBudget(ratio=0.0, min_per_s=0.1)
    one, two = Service(si.BackendError()), Service(si.BackendError())
    assert asked(one, budget) == 1.0
    assert asked(two, budget) is si.BackendError


# the instants, in milliseconds since the last event, at which requests come, and retries are wanted or refunded
events = st.lists(st.tuples(st.integers(0, 4000), st.sampled_from(["request", "extra", "refund"])), max_size=150)


@given(events, st.sampled_from([0.0, 0.05, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.1, 1.0]))
def test_extra_calls_stay_within_share_of_any_window(plain, events, ratio, per_s):
    """Extra calls in any window stay within their ratio of its requests plus the minimum rate."""
    twins = [kind.CallBudget(ratio, per_s) for kind in (compiled, plain("resilience._call_budget_cy"))]
    now, requests, extra, throttled = 5 * S, [], [], 0
    granted = 0
    for gap, event in events:
        now += gap * MS
        if event == "request":
            requests.append(now)
            for twin in twins:
                twin.count(now)
        elif event == "refund":
            for twin in twins:
                twin.refund(now)
            if extra and now // S - extra[-1] // S < 10:
                extra.pop()
        else:
            first, second = (twin.grant(now) for twin in twins)
            assert first == second
            number = now // S

            def live(instants, number=number):
                return sum(number - instant // S < 10 for instant in instants)

            allowed = ratio * live(requests) + per_s * 10
            assert first == (live(extra) + 1 <= allowed + 1e-9)
            granted += first
            if first:
                extra.append(now)
            else:
                throttled += 1
        assert twins[0].left(now) == twins[1].left(now)
    for twin in twins:
        assert (twin.requests, twin.granted, twin.throttled) == (len(requests), granted, throttled)


def test_refund_lets_another_extra_call_through(plain):
    for kind in (compiled, plain("resilience._call_budget_cy")):
        share = kind.CallBudget(0.0, 0.1)
        assert [share.grant(0), share.grant(5 * S)] == [True, False]
        share.refund(6 * S)
        share.refund(6 * S)
        assert [share.grant(7 * S), share.grant(7 * S)] == [True, False]


def test_backward_clock_step_is_ignored(plain):
    for kind in (compiled, plain("resilience._call_budget_cy")):
        share = kind.CallBudget(1.0, 0.0)
        share.count(100 * S)
        share.count(3 * S)
        share.count(-5 * S)
        assert share.left(99 * S) == 3.0


# -- around what ------------------------------------------------------------------------------------------------


def test_batch_is_retried_but_not_its_failed_rows():
    """A failed batch is repeated as a whole; rows that failed alone are not repeated."""
    backend = ScriptedBackend(RuntimeError("driver"), [KeyError("row"), 2.0])
    budget = RetryBudget(retryable=RuntimeError)

    async def main(_):
        retried = budget.wrap(backend)
        assert is_backend(retried)
        batch = Batch(np.zeros(2), [Request(0.0), None])
        results = await retried.infer(batch)
        assert isinstance(results[0], KeyError)
        backend._steps.append(RuntimeError("driver"))
        with pytest.raises(RuntimeError):
            await retried.infer(Batch(np.zeros(2), [Request(0.0), Request(0.0, stream_id=1)]))

    run(main)
    assert len(backend.batches) == 3
    assert not_retried(budget) == {"repeatable": 1}


def test_retried_functions_keep_their_kind(monkeypatch, clock):
    slept = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    budget = RetryBudget(retryable=ConnectionError, backoff_s=0.5, seed=1, clock=clock)
    script = [ConnectionError(), 5]

    def step(x, *, y=0):
        """Says so."""
        it = script.pop(0)
        if isinstance(it, Exception):
            raise it
        return it, x, y

    retried = budget.wrap(step)
    assert retried(1, y=2) == (5, 1, 2)
    assert slept == [pytest.approx(0.5 * (0.5 + 0.5 * random.Random(1).random()))]
    assert retried.__doc__ == "Says so."
    script[:] = [KeyError()]
    with pytest.raises(KeyError):
        retried(1)

    @RetryBudget(retryable=ConnectionError, backoff_s=0.5, seed=1)
    async def later(x):
        return step(x)

    assert inspect.iscoroutinefunction(later)
    script[:] = [ConnectionError(), 5, ConnectionError(), ConnectionError()]

    async def main(loop):
        assert await later(3) == (5, 3, 0)
        assert loop.time() == pytest.approx(slept[0])
        with pytest.raises(ConnectionError):
            await later(3)

    run(main)
    for idempotent in (False, None):
        function = RetryBudget(retryable=ConnectionError, idempotent=idempotent)(step)
        script[:] = [ConnectionError(), 5]
        if idempotent is False:
            with pytest.raises(ConnectionError):
                function(1)
        else:
            assert function(1) == (5, 1, 0)


def test_stack_gives_budget_its_inner_and_clock():
    """In a stack, the retry budget wraps the inner backend and measures with the clock of the stack."""
    budget = RetryBudget()
    backend = ScriptedBackend(RuntimeError("once"), duration_s=0.01)

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=0.1)
        async with si.Stack(budget, batcher, backend, clock=loop.clock) as service:
            assert await service(2.0) == 2.0
            assert service.statistics()["RetryBudget"].succeeded_after_retry == 1
            request = Request(1.0, deadline_ns=loop.now_ns + 1)
            assert not service.admission(request, loop.now_ns).ok
            layer = service.inner
            assert is_service(layer)
            assert repr(budget) in repr(layer)

    run(main)
    assert budget.statistics().usual_s == pytest.approx(0.01)


def test_rejection_by_inner_limit_is_retried():
    """Around a concurrency limit, the retry budget sends a rejected request again when a permit is free."""
    from streaminfer.resilience.limit.concurrency_limit import ConcurrencyLimit

    budget, limit = RetryBudget(max_attempts=3, min_per_s=10.0), ConcurrencyLimit(limit=1)

    async def main(loop):
        stack = si.Stack(budget, limit, Service(takes_s=0.05), clock=loop.clock)
        async with stack as service:
            await service(1.0)
            answers = await asyncio.gather(*[service(1.0) for _ in range(2)])
            assert answers == [1.0, 1.0]
            assert loop.time() == pytest.approx(0.15, abs=0.01)

    run(main)
    assert limit.statistics().rejected == 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"max_attempts": 0}, ValueError, "max_attempts: expected"),
        ({"ratio": -0.1}, ValueError, "ratio: expected a finite number ≥ 0"),
        ({"ratio": float("inf")}, ValueError, "ratio: expected"),
        ({"ratio": True}, TypeError, "ratio: expected"),
        ({"min_per_s": "1"}, TypeError, "min_per_s: expected"),
        ({"retryable": 3}, TypeError, "retryable: expected classes"),
        ({"retryable": (KeyError, "a")}, TypeError, "retryable: expected classes of exceptions.* got 'a'"),
        ({"backoff_s": -1}, ValueError, "backoff_s: expected"),
        ({"max_wait_s": None}, TypeError, "max_wait_s: expected"),
        ({"idempotent": 1}, TypeError, "idempotent: expected True, False or None"),
        ({"seed": -1}, ValueError, "seed: expected"),
        ({"name": None}, TypeError, "name: expected"),
        ({"clock": 1}, TypeError, "clock: expected"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        RetryBudget(**settings)


def test_repr_and_html():
    budget = RetryBudget(name="<b>")
    assert "&lt;b&gt;" in budget._repr_html_()
    assert "throttled: 0</td>" in budget._repr_html_()
    assert repr(budget) == "<RetryBudget('<b>', 0 retries of 0 requests)>"
    with pytest.raises(TypeError, match="not a generator"):

        @budget
        async def generator():
            yield 1


@pytest.mark.parametrize("stack", [True, False], ids=["arrays", "lists"])
def test_retry_does_not_see_writes_of_first_attempt(stack):
    """A retry gets the inputs of the requests, even if the model wrote to its inputs before it failed."""

    async def main(loop):
        def double(batch):
            inputs = batch.inputs
            for row, value in enumerate(inputs):
                inputs[row] = 2.0 * value
            if len(backend.batches) == 1:
                raise si.BackendError("once")
            return list(inputs)

        backend = ScriptedBackend(then=double)
        batcher = si.AdaptiveBatcher(max_batch_size=4, stack=stack)
        async with si.Stack(batcher, si.RetryBudget(), backend, clock=loop.clock) as service:
            assert await asyncio.gather(service(1.0), service(3.0)) == [2.0, 6.0]
        assert len(backend.batches) == 2

    run(main)


class TestStop:
    """Stops while a request waits between two attempts, so that no inner part has it."""

    @pytest.mark.parametrize("limit_s", [0.0, 0.25])
    @pytest.mark.parametrize("drain", [False, True])
    def test_requests_between_attempts_end(self, drain, limit_s):
        """Requests between attempts end with `Closed`: at once, or at the timeout of a stop that drains."""

        async def main(loop):
            service = Service(*[si.Overloaded("full", retry_after_s=0.9)] * 3)
            stack = si.Stack(RetryBudget(max_attempts=3), si.Stack(service), clock=loop.clock)
            await stack.start()
            calls = [asyncio.ensure_future(stack(1.0)) for _ in range(2)]
            await asyncio.sleep(0.1)
            await stack.stop(drain=drain, timeout_s=limit_s)
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(end) for end in ends] == [si.Closed] * 2
            assert loop.time() == pytest.approx(0.1 + (limit_s if drain else 0.0), abs=0.01)
            async with stack:
                assert await stack(1.0) == 1.0  # the next run retries as the first did
            return service.asked_at

        assert len(run(main)) == 4

    def test_draining_waits_for_the_next_attempt(self):
        """A draining stop waits for the next attempt of a request."""

        async def main(loop):
            service = Service(si.Overloaded("full", retry_after_s=0.5))
            stack = si.Stack(RetryBudget(), si.Stack(service), clock=loop.clock)
            await stack.start()
            call = asyncio.ensure_future(stack(1.0))
            await asyncio.sleep(0.1)
            await stack.stop()
            return float(await call), loop.time()

        assert run(main) == (1.0, pytest.approx(0.5, abs=0.01))

    def test_no_pause_begins_after_the_stop(self):
        """A request that the stop ends in an inner part is not retried, even if `retryable` names `Closed`."""

        async def main(loop):
            budget = RetryBudget(retryable=si.Closed, backoff_s=0.8)
            stack = si.Stack(budget, si.Stack(si.AdaptiveBatcher(max_batch_size=1), ScriptedBackend(HANG)))
            async with si.Stack(stack, clock=loop.clock) as outer:
                call = asyncio.ensure_future(outer(1.0))
                await asyncio.sleep(0.1)
                await outer.stop(drain=False)
                (end,) = await asyncio.gather(call, return_exceptions=True)
            return type(end), loop.time()

        assert run(main) == (si.Closed, pytest.approx(0.1, abs=0.01))
