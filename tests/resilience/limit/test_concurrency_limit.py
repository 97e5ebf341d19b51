"""`ConcurrencyLimit` around services, backends, functions and blocks: a permit comes back however its call ends."""

import asyncio
import inspect
import os
import threading

import numpy as np
import pytest
from forked import status_of_child

import streaminfer as si
from streaminfer.protocols import Admission, adapt, is_backend, is_service
from streaminfer.request import Batch, Request, Response, Timings
from streaminfer.resilience.limit.concurrency_limit import ConcurrencyLimit
from streaminfer.testing import HANG, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


class Service:
    """Service whose responses and admission the test sets."""

    name = "scripted"

    def __init__(self):
        self.asked = []
        self.says = Admission(True)

    async def call(self, request):
        future = asyncio.get_running_loop().create_future()
        self.asked.append(future)
        return await future

    def admission(self, request, now_ns):
        return self.says


@pytest.fixture
def limit(clock):
    return ConcurrencyLimit(limit=2, clock=clock)


def counted(limit):
    seen = limit.statistics()
    return seen.in_flight, seen.succeeded, seen.ignored, seen.deadline_exceeded, seen.inner_rejected


# -- services ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (Response(1.0), (0, 1, 0, 0, 0)),
        (si.BackendError("broken"), (0, 0, 1, 0, 0)),
        (si.DeadlineExceeded("late"), (0, 0, 0, 1, 0)),
        (TimeoutError(), (0, 0, 0, 1, 0)),
        (si.Overloaded("full"), (0, 0, 0, 0, 1)),
        (si.CircuitOpen("open"), (0, 0, 1, 0, 0)),
        ("cancelled", (0, 0, 1, 0, 0)),
        ("cancelled late", (0, 0, 0, 1, 0)),
    ],
    ids=str,
)
def test_permit_is_released_however_a_request_ends(limit, clock, ending, expected):
    service = Service()

    async def main(_):
        limited = limit.wrap(service)
        task = asyncio.ensure_future(limited.call(Request(1.0, deadline_ns=clock.now_ns + 100 * MS)))
        await asyncio.sleep(0)
        assert counted(limit) == (1, 0, 0, 0, 0)
        if isinstance(ending, str):
            clock.advance(0.1 if ending.endswith("late") else 0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif isinstance(ending, Exception):
            service.asked[0].set_exception(ending)
            with pytest.raises(type(ending)):
                await task
        else:
            service.asked[0].set_result(ending)
            assert await task is ending

    run(main)
    assert counted(limit) == expected


def test_the_first_rejection_names_no_time(limit, clock):
    """Before any call has completed, and any time has passed, a rejection has no time to retry."""
    limited = limit.wrap(Service())
    permits = [limit.try_acquire(), limit.try_acquire()]
    assert 0 not in permits

    assert limited.admission(Request(1.0), clock()) == Admission(False, "limit", None)
    with pytest.raises(si.Overloaded, match=r"of 2 that it allows$") as refused:
        limit.guard().__enter__()
    assert refused.value.retry_after_s is None


def test_excess_call_is_rejected_with_a_retry_time(limit, clock):
    """A call above the limit is rejected at once and told when to retry."""
    service = Service()

    async def main(_):
        limited = limit.wrap(service)
        for round_ in range(4):
            pair = [asyncio.ensure_future(limited.call(Request(1.0))) for _ in range(2)]
            await asyncio.sleep(0)
            clock.advance(0.1)
            if round_ == 3:
                answer = limited.admission(Request(1.0), clock())
                assert answer == Admission(False, "limit", pytest.approx(0.1))
                with pytest.raises(si.Overloaded, match="2 calls are in flight, of 2 that it allows") as refused:
                    await limited.call(Request(1.0))
                assert refused.value.retry_after_s == pytest.approx(0.1)  # two at twenty a second
                assert limit.retry_after_s == pytest.approx(0.1)
            for future in service.asked[-2:]:
                future.set_result(Response(1.0))
            await asyncio.gather(*pair)
        assert limited.admission(Request(1.0), clock()) == Admission(True)

    run(main)
    assert limit.statistics().rejected == 1
    assert len(service.asked) == 8


def test_limit_returns_inner_admission(limit, clock):
    """With a free permit, admission and name are those of the wrapped service."""
    service = Service()
    limited = limit.wrap(service)
    service.says = Admission(False, "circuit_open", 3.0)
    assert limited.admission(Request(1.0), clock()) == service.says
    assert is_service(limited)
    assert not is_backend(limited)
    assert limited.inner is service
    assert limited.name == "scripted"
    assert adapt(limited).capabilities().admission == limited.admission
    assert repr(limit) in repr(limited)


def test_limit_asks_service_about_tight_deadlines(clock):
    """The limit rejects a request with a tight deadline if ``admission`` of the service says that it is infeasible."""
    limit, service = ConcurrencyLimit(initial=10, clock=clock), Service()

    async def main(_):
        limited = limit.wrap(service)
        tasks = [asyncio.ensure_future(limited.call(Request(1.0))) for _ in range(10)]
        await asyncio.sleep(0)
        clock.advance(0.05)
        for future in service.asked:
            future.set_result(Response(1.0))
        await asyncio.gather(*tasks)
        late = Admission(False, "infeasible", 0.2, clock() + 999 * MS)
        hurried = Request(1.0, deadline_ns=clock() + 80 * MS)
        for _ in range(25):
            tasks = [asyncio.ensure_future(limited.call(Request(1.0))) for _ in range(2)]
            await asyncio.sleep(0)
            clock.advance(0.05)
            for future in service.asked[-2:]:
                future.set_result(Response(1.0))
            await asyncio.gather(*tasks)
        hurried = Request(1.0, deadline_ns=clock() + 80 * MS)
        service.says = late
        alone = asyncio.ensure_future(limited.call(hurried))  # nothing is in flight: the service decides
        await asyncio.sleep(0)
        assert not alone.done()
        with pytest.raises(si.DeadlineExceeded, match="its service rejects it: infeasible"):
            await limited.call(hurried)
        with pytest.raises(
            si.DeadlineExceeded, match=r"rejected a request with 0\.049000 s left: no recent call took so little"
        ):
            service.says = Admission(True)
            await limited.call(Request(1.0, deadline_ns=clock() + 49 * MS))
        assert limited.admission(Request(1.0, deadline_ns=clock() + 49 * MS), clock()).reason == "infeasible"
        service.says = Admission(False, "circuit_open", 1.0)  # the limit does not reject for this reason
        passed = asyncio.ensure_future(limited.call(hurried))
        await asyncio.sleep(0)
        assert not passed.done()
        service.says = late
        relaxed = asyncio.ensure_future(limited.call(Request(1.0, deadline_ns=clock() + 500 * MS)))  # not consulted
        await asyncio.sleep(0)
        assert not relaxed.done()
        for task in (alone, passed, relaxed):
            task.cancel()
        await asyncio.gather(alone, passed, relaxed, return_exceptions=True)

    run(main)
    assert limit.statistics().infeasible == 2
    assert limit.in_flight == 0


def test_batcher_timings_separate_queue_and_service(clock):
    """The timings of a batcher separate queue delay from service time."""

    class Batching(Service):
        max_in_flight = 1

    def answered(service):
        limit = ConcurrencyLimit(initial=10, clock=clock)

        async def main(_):
            limited = limit.wrap(service)
            for _ in range(12):
                task = asyncio.ensure_future(limited.call(Request(1.0)))
                await asyncio.sleep(0)
                began = clock() + 40 * MS
                timings = Timings(clock(), began, began, began + 20 * MS, 1)
                clock.advance(0.06)
                service.asked[-1].set_result(Response(1.0, timings=timings))
                await task

        run(main)
        return limit.statistics()

    seen = answered(Batching())
    assert (seen.queue_delay_s, seen.service_s) == (pytest.approx(0.04), pytest.approx(0.02))
    unbounded = Batching()
    unbounded.max_in_flight = 2**31 - 1  # it queues nothing: calls wait in a part further inside
    assert answered(unbounded).windows == 0  # no sample separates queue delay from service time
    assert answered(Service()).queue_delay_s == 0.0


def test_a_response_of_another_class_has_no_timings(limit, clock):
    """The limit counts a call with a response of another class, and reads timings of a `Response` only."""

    class Batching(Service):
        max_in_flight = 1

    async def main(_):
        service = Batching()
        task = asyncio.ensure_future(limit.wrap(service).call(Request(1.0)))
        await asyncio.sleep(0)
        service.asked[-1].set_result("own")
        assert await task == "own"

    run(main)
    assert counted(limit) == (0, 1, 0, 0, 0)


def test_stack_binds_clock_and_objective():
    """In a stack, the limit uses its clock and derives the target from its objective."""
    limit = ConcurrencyLimit()

    async def main(loop):
        batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=0.2, policy="greedy")
        backend = ScriptedBackend(duration_s=0.01)
        async with si.Stack(limit, batcher, backend, clock=loop.clock) as service:
            for _ in range(3):
                await asyncio.gather(*[service(1.0) for _ in range(20)])
            assert limit.now() == loop.now_ns
            assert limit.statistics().target_s == pytest.approx(0.14)
            batcher.reconfigure(slo_s=0.4)
            for _ in range(4):
                await asyncio.gather(*[service(1.0) for _ in range(20)])
            assert limit.statistics().target_s == pytest.approx(0.28)
            assert service.statistics()["ConcurrencyLimit"].succeeded == 140

    run(main)


def test_a_clock_that_was_given_stays(clock, limit):
    limit.bind_clock(lambda: 5)
    assert limit.now() == clock.now_ns
    free = ConcurrencyLimit()
    free.bind_clock(lambda: 5)
    free.bind_clock(lambda: 6)
    assert free.now() == 5


def test_services_of_one_limit_share_permits(limit):
    one, two = limit.wrap(Service()), limit.wrap(Service())

    async def main(_):
        tasks = [asyncio.ensure_future(each.call(Request(1.0))) for each in (one, two)]
        await asyncio.sleep(0)
        for each in (one, two):
            with pytest.raises(si.Overloaded):
                await each.call(Request(1.0))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main)


def test_urgent_requests_have_reserved_permits(clock):
    limit = ConcurrencyLimit(limit=4, reserve=0.5, clock=clock)
    limited = limit.wrap(Service())

    async def main(_):
        tasks = [asyncio.ensure_future(limited.call(Request(1.0, priority=1))) for _ in range(2)]
        await asyncio.sleep(0)
        assert limited.admission(Request(1.0, priority=1), clock()).reason == "limit"
        with pytest.raises(si.Overloaded):
            await limited.call(Request(1.0, priority=1))
        tasks += [asyncio.ensure_future(limited.call(Request(1.0))) for _ in range(2)]
        await asyncio.sleep(0)
        assert limit.in_flight == 4
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(main)


# -- backends and functions -------------------------------------------------------------------------------------


def test_a_backend_is_limited_by_batches():
    limit = ConcurrencyLimit(limit=1)
    backend = ScriptedBackend(HANG, RuntimeError("broken"))

    async def main(loop):
        limited = limit.wrap(backend)
        assert is_backend(limited)
        limit.bind_clock(loop.clock)
        batch = Batch(np.zeros(2), [Request(0.0), Request(0.0)], deadline_ns=loop.now_ns + 100 * MS)
        hanging = asyncio.ensure_future(limited.infer(batch))
        await asyncio.sleep(0.001)
        with pytest.raises(si.Overloaded):
            await limited.infer(batch)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        with pytest.raises(RuntimeError):
            await limited.infer(batch)
        assert list(await limited.infer(batch)) == [0.0, 0.0]

    run(main)
    assert counted(limit) == (0, 1, 2, 0, 0)


def test_adaptive_limit_rejects_a_backend():
    """An adaptive limit cannot wrap a backend."""
    with pytest.raises(TypeError, match=r"inner: expected a service or a function .*wraps the batcher"):
        ConcurrencyLimit().wrap(ScriptedBackend())


def test_limited_functions_keep_their_kind(limit, clock):
    @limit
    def double(x, *, times=2):
        """Says so."""
        if x is None:
            raise TimeoutError
        assert limit.in_flight == 1
        return x * times

    assert double(2, times=3) == 6
    with pytest.raises(TimeoutError):
        double(None)
    assert double.__doc__ == "Says so."
    assert not inspect.iscoroutinefunction(double)
    assert counted(limit) == (0, 1, 0, 1, 0)
    assert inspect.isfunction(double)

    class Model:
        @limit
        def method(self, x):
            return self, x

    model = Model()
    assert model.method(1) == (model, 1)

    @limit
    async def later(x):
        if x is None:
            raise si.BackendError
        await asyncio.sleep(0.01)
        return x

    assert inspect.iscoroutinefunction(later)

    async def main(_):
        results = await asyncio.gather(*[later(x) for x in range(3)], return_exceptions=True)
        assert results[:2] == [0, 1]
        assert isinstance(results[2], si.Overloaded)
        with pytest.raises(si.BackendError):
            await later(None)

    run(main)
    assert counted(limit) == (0, 4, 1, 1, 0)


def test_wrap_rejects_other_objects(limit):
    def generator():
        yield 1

    for wrong in (generator, int, 7, None):
        with pytest.raises(TypeError, match="inner: expected"):
            limit.wrap(wrong)


# -- blocks, and by hand ----------------------------------------------------------------------------------------


def test_guarded_block_counts_as_a_call(limit, clock):
    with limit.guard() as guard:
        assert limit.in_flight == 1
        clock.advance(0.01)
    assert counted(limit) == (0, 1, 0, 0, 0)
    with pytest.raises(KeyError), limit.guard():
        raise KeyError
    with limit.guard() as other:
        other.ignore()
    with pytest.raises(TimeoutError), limit.guard(deadline_ns=clock() + MS):
        raise TimeoutError
    assert counted(limit) == (0, 1, 2, 1, 0)
    with pytest.raises(RuntimeError, match="for one call"), guard:
        pass
    with pytest.raises(RuntimeError, match="not inside its block"):
        guard.ignore()
    with pytest.raises(RuntimeError, match="not inside its block"):
        limit.guard().__exit__(None, None, None)
    assert [repr(limit.guard()), repr(guard)] == ["<LimitGuard, fresh>", "<LimitGuard, over>"]

    async def main(_):
        async with limit.guard(priority=1), limit.guard():
            with pytest.raises(si.Overloaded):
                async with limit.guard():
                    raise AssertionError("not reached")

    run(main)
    assert counted(limit) == (0, 3, 2, 1, 0)


def test_manual_acquire_record_and_release(limit, clock):
    permits = [limit.try_acquire(), limit.try_acquire(priority=-1)]
    assert all(permits)
    assert limit.try_acquire() == 0
    assert limit.try_acquire(deadline_ns=clock() - 1) == 0
    limit.record(permits[0], queued_s=0.001)
    with pytest.raises(ValueError, match="queued_s"):
        limit.record(permits[1], queued_s=-1.0)
    limit.record(0)
    limit.release(0)
    assert counted(limit) == (0, 1, 1, 0, 0)
    limit.release(limit.try_acquire())
    limit.release(permits[0])
    assert limit.statistics().stale_permits == 1
    with pytest.raises(si.InvalidInput, match="priority"):
        limit.try_acquire(priority=1.5)
    assert limit.in_flight == 0


@pytest.mark.parametrize("second", ["record", "release"])
@pytest.mark.parametrize("first", ["record", "release"])
def test_permit_returned_twice_frees_one_permit(first, second):
    """A permit that was returned before counts as stale and changes nothing else, even with other calls in flight."""
    limit = ConcurrencyLimit(limit=2)
    permit, other = limit.try_acquire(), limit.try_acquire()

    getattr(limit, first)(permit)
    getattr(limit, second)(permit)

    assert permit != other
    assert limit.in_flight == 1
    assert limit.statistics().stale_permits == 1


def test_threads_never_exceed_the_limit():
    limit = ConcurrencyLimit(limit=3)
    most, lock = [0], threading.Lock()
    inside = [0]

    def work():
        for _ in range(300):
            permit = limit.try_acquire()
            if permit:
                with lock:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                with lock:
                    inside[0] -= 1
                limit.record(permit)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most[0] <= 3
    seen = limit.statistics()
    assert (seen.in_flight, seen.stale_permits, seen.succeeded + seen.rejected) == (0, 0, 2400)


# -- settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"limit": 0}, ValueError, "limit: expected a whole number ≥ 1"),
        ({"limit": 2.0}, TypeError, "limit: expected"),
        ({"initial": 0}, ValueError, "initial: expected"),
        ({"initial": 2000}, ValueError, "initial: expected .* ≤ 1000"),
        ({"initial": 20, "min_limit": 30}, ValueError, "initial: expected a whole number ≥ 30"),
        ({"min_limit": 2000}, ValueError, "min_limit: expected"),
        ({"max_limit": 0}, ValueError, "max_limit: expected"),
        ({"queue_delay_s": -1.0}, ValueError, "queue_delay_s: expected"),
        ({"reserve": 1.0}, ValueError, "reserve: expected a share of at least 0 and below 1, got 1.0"),
        ({"reserve": "a"}, TypeError, "reserve: expected"),
        ({"tighten": 0.0}, ValueError, "tighten: expected a share above 0 and at most 1"),
        ({"tighten": float("nan")}, ValueError, "tighten: expected"),
        ({"slo": 0.1}, TypeError, "slo: expected an SLO or None"),
        ({"name": 1}, TypeError, "name: expected"),
        ({"clock": 1}, TypeError, "clock: expected"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        ConcurrencyLimit(**settings)


@pytest.mark.parametrize(
    ("settings", "initial"), [({}, 20), ({"max_limit": 10}, 10), ({"min_limit": 30}, 30), ({"limit": 40}, 40)]
)
def test_learning_starts_within_the_limits(settings, initial):
    """An adaptive limit starts at 20, or at the nearest value within its bounds."""
    assert ConcurrencyLimit(**settings).statistics().limit == initial


def test_explicit_queue_delay_sets_the_target(clock):
    """`queue_delay_s` sets the target, so that a longer delay lets the limit grow."""
    limit = ConcurrencyLimit(initial=4, queue_delay_s=0.5, clock=clock)
    for _ in range(2):
        permits = [limit.try_acquire() for _ in range(4)]
        clock.advance(0.1)
        for permit in permits:
            limit.record(permit, queued_s=0.04)
    assert limit.statistics().target_s == pytest.approx(0.56)
    assert limit.statistics().limit == 6.0


def test_repr_and_html(limit):
    limit.name = "<model>"
    shown = limit._repr_html_()
    assert "&lt;model&gt;" in shown
    assert "<tr><th>allowed</th><td>2</td></tr>" in shown
    assert repr(limit) == "<ConcurrencyLimit('<model>', 0 of 2)>"
    with pytest.raises(AttributeError):
        limit.statistics().limit = 3


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_fork_frees_permits_of_parent_threads(limit):
    """In a forked process, the permits of its parent's threads are free.

    Their calls end in the parent; in the child nothing would release the permits.
    """
    is_inside, go_on = threading.Event(), threading.Event()

    @limit
    def call(waits):
        if waits:
            is_inside.set()
            go_on.wait()
        return True

    by_hand = limit.try_acquire()
    calling = threading.Thread(target=call, args=(True,))
    calling.start()
    is_inside.wait()
    status = status_of_child(lambda: call(False) and limit.record(by_hand) is None and limit.in_flight == 0)
    go_on.set()
    calling.join()

    assert status == 0
    assert limit.in_flight == 1


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_call_that_forks_gives_no_permit_back_twice(limit):
    """If a call forks, the child releases its permit at once, and not again at the end of the block."""
    with limit.guard():
        child = os.fork()
    if child == 0:
        os._exit(0 if limit.in_flight == 0 and limit.try_acquire() and limit.try_acquire() == 2 else 1)

    assert os.waitpid(child, 0)[1] == 0
    assert limit.in_flight == 0
