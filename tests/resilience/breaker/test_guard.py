"""Guarded calls: outcomes, cancellation, deadlines, and the unchanged signature of the wrapped object."""

import asyncio
import copy
import functools
import inspect
import pickle

import numpy as np
import pytest

import streaminfer as si
from streaminfer.protocols import Admission, is_backend, is_service
from streaminfer.request import Batch
from streaminfer.resilience import CircuitBreaker
from streaminfer.resilience.breaker import _guard_cy as guards
from streaminfer.testing import HANG, FakeClock, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


class Broken(Exception):
    pass


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(clock=clock, minimum_calls=2, window=10, slow_call_s=0.2)


def counted(breaker):
    seen = breaker.statistics()
    return seen.succeeded, seen.failed, seen.ignored


# -- functions --------------------------------------------------------------------------------------------------


def test_wrapped_function_keeps_its_signature(breaker):
    def function(x, *, y=2):
        """Says so."""
        return x, y

    guarded = breaker.wrap(function)
    assert guarded(1, y=3) == (1, 3)
    assert guarded(1) == (1, 2)
    assert not inspect.iscoroutinefunction(guarded)
    assert (guarded.__name__, guarded.__doc__, guarded.__wrapped__) == ("function", "Says so.", function)
    assert inspect.signature(guarded) == inspect.signature(function)
    assert counted(breaker) == (2, 0, 0)
    with pytest.raises(TypeError, match="missing 1 required"):
        guarded()


async def plain(x, /, y, *, z=3, **_):
    return x, y, z


async def without_stars(x, /, y=2, *, z=3):
    return x, y, z


class AsyncCallable:
    async def __call__(self, x, y, z=3):
        return x, y, z


@pytest.mark.parametrize("function", [plain, without_stars, functools.partial(plain), AsyncCallable()])
def test_wrapped_async_function_stays_async(breaker, function):
    guarded = breaker.wrap(function)
    assert inspect.iscoroutinefunction(guarded)
    assert inspect.signature(guarded) == inspect.signature(function)
    assert run(lambda loop: guarded(1, 2)) == (1, 2, 3)
    assert run(lambda loop: guarded(1, y=4, z=5)) == (1, 4, 5)
    assert counted(breaker) == (2, 0, 0)


def test_wrapped_parameters_keep_names_and_defaults(breaker):
    """A wrapped function keeps the names, defaults and kinds of its parameters."""
    default = object()

    @breaker
    async def function(a, b, /, c, d=default, *, e, f=5):
        return a, b, c, d, e, f

    assert run(lambda loop: function(1, 2, c=3, e=4)) == (1, 2, 3, default, 4, 5)
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'e'"):
        run(lambda loop: function(1, 2, 3))
    with pytest.raises(TypeError, match="positional-only"):
        run(lambda loop: function(a=1, b=2, c=3, e=4))
    assert function.__kwdefaults__ == {"f": 5}


class Model:
    breaker = CircuitBreaker()

    @breaker
    def predict(self, x):
        return self, x

    @breaker
    async def apredict(self, x):
        return self, x

    @classmethod
    @breaker
    def of_class(cls, x):
        return cls, x

    @staticmethod
    @breaker
    def static(x):
        return x


def test_methods():
    model = Model()
    assert model.predict(1) == (model, 1)
    assert run(lambda loop: model.apredict(x=2)) == (model, 2)
    assert Model.predict(model, 3) == (model, 3)
    assert Model.of_class(4) == (Model, 4)
    assert model.static(5) == 5
    assert inspect.iscoroutinefunction(model.apredict)


@Model.breaker
def at_the_top(x):
    return x


def test_guarded_function_is_copied_by_name():
    """A guarded function is copied and pickled by its name."""
    assert copy.deepcopy(at_the_top) is at_the_top
    assert copy.copy(at_the_top) is at_the_top
    assert at_the_top.__reduce__() == "at_the_top"
    assert pickle.loads(pickle.dumps(Model.predict)) is Model.predict


def failing(error):
    def function():
        raise error

    async def async_function():
        raise error

    return function, async_function


OUTCOMES = [
    (Broken("broken"), (0, 1, 0)),
    (TimeoutError("of its own"), (0, 1, 0)),
    (si.BackendError("broken"), (0, 1, 0)),
    (si.Overloaded("full"), (0, 0, 1)),
    (si.Closed("stopped"), (0, 0, 1)),
    (si.InvalidInput("bad"), (0, 0, 1)),
    (si.CircuitOpen("another"), (0, 0, 1)),
    (asyncio.CancelledError(), (0, 0, 1)),
    (GeneratorExit(), (0, 0, 1)),
    (KeyboardInterrupt(), (0, 0, 1)),
    (si.DeadlineExceeded("cut off"), (0, 1, 0)),
]


@pytest.mark.parametrize(("error", "outcome"), OUTCOMES, ids=lambda value: type(value).__name__)
def test_exception_outcomes(clock, error, outcome):
    function, async_function = failing(error)

    async def use_guard(breaker):
        async with breaker.guard():
            raise error

    def use_sync_guard(breaker):
        with breaker.guard():
            raise error

    async def starred(*args):
        raise error

    def drive(coroutine):
        with pytest.raises(type(error)) as caught:
            coroutine.send(None)
        assert caught.value is error

    for number in range(5):
        breaker = CircuitBreaker(clock=clock)
        if number in {0, 1}:
            with pytest.raises(type(error)) as caught:
                breaker.wrap(function)() if number else use_sync_guard(breaker)
            assert caught.value is error
        elif number in {2, 3}:
            drive(breaker.wrap(async_function if number == 2 else starred)())
        else:
            drive(use_guard(breaker))
        assert counted(breaker) == outcome


def test_ignored_exceptions(clock):
    for ignore in (Broken, [Broken], (OSError, Broken), lambda error: "broken" in str(error)):
        breaker = CircuitBreaker(clock=clock, ignore=ignore)
        for error in (Broken("broken"), ValueError("other")):
            with pytest.raises(type(error)):
                breaker.wrap(failing(error)[0])()
        assert counted(breaker) == (0, 1, 1)


def test_failure_and_ignored_results(clock):
    """`failure_result` counts a result as a failure, and `ignore_result` counts it as no outcome."""
    breaker = CircuitBreaker(clock=clock, failure_result=lambda x: x >= 500, ignore_result=lambda x: x == 404)

    async def status(x):
        return x

    for guarded in (breaker.wrap(lambda x: x), lambda x: run(lambda loop: breaker.wrap(status)(x))):
        for result in (200, 404, 503):
            assert guarded(result) == result
    assert counted(breaker) == (2, 2, 2)


@pytest.mark.parametrize("which", ["failure_result", "ignore_result", "ignore"])
def test_predicate_that_raises_costs_no_permit(clock, which):
    """A predicate that raises counts as no outcome, and its call returns the permit."""
    breaker = CircuitBreaker(clock=clock, minimum_calls=1, half_open_calls=1, **{which: lambda x: 1 / 0})
    breaker.record(False, 0.0)
    clock.advance(5.0)

    def work():
        if which == "ignore":
            raise Broken

    with pytest.raises(ZeroDivisionError):
        breaker.wrap(work)()
    assert breaker.permits()
    assert counted(breaker) == (0, 1, 1)


def test_slow_calls_by_the_clock(breaker, clock):
    function = breaker.wrap(lambda: clock.advance(0.3))
    function()
    with breaker.guard():
        clock.advance(0.2)
    assert (breaker.statistics().slow_calls, breaker.state) == (1, "closed")
    breaker.reset()
    function()
    function()
    assert breaker.state == "open"
    with pytest.raises(si.CircuitOpen) as refused:
        function()
    assert 4.5 <= refused.value.retry_after_s <= 5.0


def test_wrap_rejects_other_objects(breaker):
    def generator():
        yield

    async def async_generator():
        yield

    for wrong in (3, int, generator, async_generator):
        with pytest.raises(TypeError, match="inner: expected a"):
            breaker.wrap(wrong)


# -- guards -----------------------------------------------------------------------------------------------------


def test_a_guard_is_for_one_call(breaker):
    guard = breaker.guard()
    with pytest.raises(RuntimeError, match="not inside"):
        guard.fail()
    with guard as entered:
        assert entered is guard
    with pytest.raises(RuntimeError, match="for one call"):
        guard.__enter__()
    with pytest.raises(RuntimeError, match="not inside"):
        guard.__exit__(None, None, None)
    assert counted(breaker) == (1, 0, 0)


def test_block_can_fail_or_ignore_its_call(breaker):
    """`fail()` and `ignore()` set the outcome of a guarded block."""

    async def in_async():
        async with breaker.guard() as call:
            call.fail()
        async with breaker.guard() as call:
            call.ignore()

    with breaker.guard() as call:
        call.fail()
    with breaker.guard() as call:
        call.ignore()
    assert counted(breaker) == (0, 1, 1)
    breaker.reset()
    run(lambda loop: in_async())
    assert counted(breaker) == (0, 2, 2)


def test_outcome_set_by_block_overrides_its_exception(breaker):
    with pytest.raises(si.InvalidInput), breaker.guard() as call:
        call.fail()
        raise si.InvalidInput
    assert counted(breaker) == (0, 1, 0)
    with pytest.raises(Broken), breaker.guard() as call:
        call.ignore()
        raise Broken
    assert counted(breaker) == (0, 1, 1)


def test_guards_reject_while_open(breaker):
    breaker.force_open()

    async def in_async():
        async with breaker.guard():
            raise AssertionError

    with pytest.raises(si.CircuitOpen), breaker.guard():
        raise AssertionError
    with pytest.raises(si.CircuitOpen):
        run(lambda loop: in_async())
    assert breaker.statistics().rejected == 2


@pytest.mark.parametrize("steps", range(4))
def test_cancelled_probe_gives_its_permit_back(steps):
    """A probe that is cancelled at any point gives its permit back."""

    async def main(loop):
        breaker = CircuitBreaker(clock=loop.clock, minimum_calls=1, half_open_calls=1, open_s=1.0)
        breaker.record(False, 0.0)
        await asyncio.sleep(1.0)

        @breaker
        async def work():
            await asyncio.sleep(0)
            await asyncio.sleep(100)

        async def block():
            async with breaker.guard():
                await asyncio.sleep(0)
                await asyncio.sleep(100)

        for make in (work, block):
            task = asyncio.ensure_future(make())
            for _ in range(steps):
                await asyncio.sleep(0)
            assert breaker.permits() is (steps == 0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert breaker.permits()
            assert breaker.state == "half_open"

    run(main)


# -- services and backends --------------------------------------------------------------------------------------


def infer(breaker, backend, deadline_ns=None, rows=2):
    guarded = breaker.wrap(backend)
    assert is_backend(guarded)
    assert not is_service(guarded)
    batch = Batch(np.zeros((rows, 1)), [si.Request(np.zeros(1))] * rows, deadline_ns)
    return run(lambda loop: guarded.infer(batch))


BATCHES = [
    ([Broken(), 1], (1, 0, 0)),
    ([Broken(), Broken()], (0, 1, 0)),
    ([Broken(), si.InvalidInput()], (0, 1, 0)),
    ([si.InvalidInput(), si.InvalidInput()], (0, 0, 1)),
    ((1, 2), (0, 1, 0)),
    (np.zeros((2, 3)), (1, 0, 0)),
    ([1], (0, 1, 0)),
    (None, (0, 1, 0)),
    (np.float64(1.0), (0, 1, 0)),
    ("ab", (0, 1, 0)),
    ({0: 1, 1: 2}, (0, 1, 0)),
]


@pytest.mark.parametrize(("rows", "outcome"), BATCHES, ids=lambda value: str(value)[:20])
def test_a_batch_is_one_outcome(breaker, rows, outcome):
    assert infer(breaker, ScriptedBackend(lambda batch: rows)) is rows
    assert counted(breaker) == outcome


def test_a_batch_that_raises_is_one_failure(breaker):
    with pytest.raises(Broken):
        infer(breaker, ScriptedBackend(Broken()))
    assert counted(breaker) == (0, 1, 0)


def test_rows_may_be_failures_by_their_result(clock):
    breaker = CircuitBreaker(clock=clock, failure_result=lambda row: row < 0)
    infer(breaker, ScriptedBackend(lambda batch: [-1, 1]))
    infer(breaker, ScriptedBackend(lambda batch: [-1, -1]))
    assert counted(breaker) == (1, 1, 0)


def test_guarded_backend_exposes_its_inner_backend(breaker):
    backend = ScriptedBackend(batch_axes={"x": 1})
    guarded = breaker.wrap(backend)
    assert guarded.inner is backend
    assert guarded.name == "ScriptedBackend"
    assert guarded.capabilities().batch_axes == {"x": 1}


class Service:
    def __init__(self, answer=None):
        self.answer = answer
        self.asked = []

    async def call(self, request):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return si.Response(request.inputs)

    def admission(self, request, now_ns):
        self.asked.append(now_ns)
        return Admission(True, predicted_finish_ns=now_ns + 5)


def test_service_admission_depends_on_breaker_state(breaker, clock):
    """A closed breaker returns the admission of its service; an open one rejects without calling it."""
    service = Service()
    guarded = breaker.wrap(service)
    request = si.Request(1.0)
    assert guarded.admission(request, clock()) == Admission(True, predicted_finish_ns=clock() + 5)
    assert breaker.wrap(ScriptedBackend()).admission(request, clock()) == Admission(True)
    breaker.record(False, 0.0)
    breaker.record(False, 0.0)
    ok, reason, retry_after_s, _ = guarded.admission(request, clock())
    assert (ok, reason) == (False, "circuit_open")
    assert 4.5 <= retry_after_s <= 5.0
    assert breaker.statistics().rejected == 0
    assert guarded.admission(request, clock() + 5_000_000_000).ok
    assert service.asked == [clock(), clock() + 5_000_000_000]


def call(breaker, service, deadline_ns=None):
    return run(lambda loop: breaker.wrap(service).call(si.Request(1.0, deadline_ns=deadline_ns)))


def test_a_service_counts_its_calls(breaker):
    assert call(breaker, Service()).outputs == 1.0
    with pytest.raises(Broken):
        call(breaker, Service(Broken()))
    assert counted(breaker) == (1, 1, 0)


@pytest.mark.parametrize("error", [si.DeadlineExceeded(), asyncio.CancelledError()])
@pytest.mark.parametrize(
    ("ran_s", "left_s", "outcome"),
    [
        (0.010, 0.010, (3, 1, 0)),  # its deadline ended it after the usual duration: it hung
        (0.009, 0.009, (3, 0, 1)),  # it began too late, so its outcome says nothing
        (0.030, 0.0, (3, 0, 1)),  # its deadline had passed before it began
    ],
)
def test_a_call_cut_off_by_its_deadline(breaker, clock, error, ran_s, left_s, outcome):
    for took_s in (0.010, 0.008, 30.0):  # the median counts: a call that loaded the model does not
        breaker.record(True, took_s)

    class Slow(Service):
        async def call(self, request):
            clock.advance(ran_s)
            raise error

    with pytest.raises(type(error)):
        call(breaker, Slow(), clock() + round(left_s * 1e9))
    assert counted(breaker) == outcome


@pytest.mark.parametrize("known", [[30.0], [0.05] * 100 + [30.0]], ids=["first", "later"])
def test_one_slow_success_does_not_hide_hanging_calls(clock, known):
    """One slow success, such as a call that loads the model, does not raise the duration that marks a hanging call."""
    breaker = CircuitBreaker(clock=clock, minimum_calls=10, window=20)
    for took_s in known:
        breaker.record(True, took_s)

    class Hung(Service):
        async def call(self, request):
            clock.advance(0.2)
            raise si.DeadlineExceeded

    for _ in range(20):
        if breaker.state == "closed":
            with pytest.raises(si.DeadlineExceeded):
                call(breaker, Hung(), clock() + 200_000_000)

    assert breaker.state == "open"


def test_call_cancelled_before_its_deadline_is_ignored(breaker, clock):
    """A call that is cancelled before its deadline is ignored as an outcome."""
    with pytest.raises(asyncio.CancelledError):
        call(breaker, Service(asyncio.CancelledError()), clock() + 5_000_000_000)
    assert counted(breaker) == (0, 0, 1)


# -- in a stack -------------------------------------------------------------------------------------------------


def test_circuit_opens_for_hang_and_closes_on_recovery():
    """A backend that hangs opens the circuit, and its recovery closes it.

    The deadline of its callers ends every batch; nothing else shows that the backend hangs.
    """

    async def main(loop):
        backend = ScriptedBackend(*[lambda batch: list(batch.inputs)] * 3, *[HANG] * 3, duration_s=0.010)
        breaker = CircuitBreaker(minimum_calls=3, window=3, failure_rate_threshold=0.9, open_s=1.0, half_open_calls=1)
        batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=0.050)
        ends = []
        async with si.Stack(batcher, breaker, backend, clock=loop.clock) as service:
            for _ in range(8):
                try:
                    ends.append(await service(1.0))
                except si.StreamInferError as error:
                    ends.append(type(error))
            assert ends == [1.0] * 3 + [si.DeadlineExceeded] * 3 + [si.CircuitOpen] * 2
            assert backend.running == 0
            await asyncio.sleep(1.0)
            assert await service(2.0) == 2.0
            assert breaker.state == "closed"
            assert service.statistics()["CircuitBreaker"].failed == 3

    run(main)


def test_overload_alone_does_not_open_the_circuit():
    """Batches that begin too late and end at their deadline are ignored, so overload does not open the circuit."""

    async def main(loop):
        breaker = CircuitBreaker(minimum_calls=5)
        batcher = si.AdaptiveBatcher(max_batch_size=1, slo_s=0.050, max_queue_size=10_000, policy="greedy")
        stack = si.Stack(batcher, breaker, ScriptedBackend(duration_s=0.013), clock=loop.clock)
        async with stack as service:
            calls = []
            for _ in range(600):
                await asyncio.sleep(0.006)
                calls.append(asyncio.ensure_future(service(1.0)))
            await asyncio.gather(*calls, return_exceptions=True)
        seen = breaker.statistics()
        assert seen.ignored > 30
        assert (seen.trips, seen.failed, seen.rejected) == (0, 0, 0)

    run(main)


def test_circuit_closes_after_each_of_fifty_restarts():
    """The circuit closes after each of fifty kills and restarts of its backend."""

    async def main(loop):
        alive = [True]

        def answer(batch):
            if not alive[0]:
                raise ConnectionError("killed")
            return list(batch.inputs)

        breaker = CircuitBreaker(minimum_calls=3, window="1s", open_s=0.2, max_open_s=1.0)
        batcher = si.AdaptiveBatcher(max_batch_size=8, slo_s=0.050)
        ends = []

        async def caller():
            try:
                ends.append(await service(1.0))
            except si.StreamInferError as error:
                ends.append(type(error))

        stack = si.Stack(batcher, breaker, ScriptedBackend(then=answer, duration_s=0.002), clock=loop.clock)
        async with stack as service:
            calls = 0
            for _ in range(50):
                for alive[0] in (False, True):
                    tasks = []
                    for _ in range(150):
                        tasks.append(asyncio.ensure_future(caller()))
                        await asyncio.sleep(0.010)
                    calls += len(tasks)
                    await asyncio.gather(*tasks)
                    assert breaker.state == ("closed" if alive[0] else breaker.state)
                assert breaker.statistics().consecutive_trips == 0
            assert len(ends) == calls
        assert set(ends) == {1.0, si.BackendError, si.CircuitOpen}
        assert breaker.statistics().trips >= 50

    run(main)


def test_clock_of_stack_is_used_unless_one_was_given(clock):
    """A breaker takes the clock of its stack unless a clock was given to it."""
    other = FakeClock(5)
    given, free = CircuitBreaker(clock=clock), CircuitBreaker()
    si.Stack(given, free, ScriptedBackend(), clock=other)
    assert (given.now(), free.now()) == (1_000, 5)


def test_the_default_clock_is_the_monotonic_clock():
    import time

    before = time.monotonic_ns()
    now = CircuitBreaker().now()
    assert before <= now <= time.monotonic_ns()
    assert before <= guards.monotonic_ns() <= time.monotonic_ns()
