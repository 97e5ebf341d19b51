"""Calls that wait for a permit of a concurrency limit: their order, their longest wait, and cancelled calls."""

import asyncio
import threading

import pytest
from forked import status_of_child

import streaminfer as si
from streaminfer.request import Request
from streaminfer.resilience.limit.concurrency_limit import ConcurrencyLimit
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


def waiting_limit(loop, **settings):
    return ConcurrencyLimit(**{"limit": 1, "max_wait_s": 1.0, "clock": loop.clock, **settings})


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_waiting_call_gets_the_released_permit():
    """A call waits until a permit is free, and is in flight only from then on."""

    async def main(loop):
        limit = waiting_limit(loop)
        first = await limit.acquire()
        second = asyncio.ensure_future(limit.acquire())
        await asyncio.sleep(0.4)
        seen = limit.statistics()
        assert (seen.in_flight, seen.queued, seen.rejected) == (1, 1, 0)
        limit.record(first)
        limit.release(await second)
        seen = limit.statistics()
        assert (seen.in_flight, seen.queued, seen.succeeded, seen.ignored) == (0, 0, 1, 1)

    run(main)


def test_call_waits_at_most_max_wait_s():
    """After ``max_wait_s`` a call is rejected with the error of a limit without a queue."""

    async def main(loop):
        limit = waiting_limit(loop, name="faces", max_wait_s=0.25)
        await limit.acquire()
        with pytest.raises(si.Overloaded, match=r"^concurrency limit 'faces' is reached: 1 calls are in flight, of 1"):
            await limit.acquire(deadline_ns=loop.clock() + 10**9)
        assert loop.time() == 0.25
        assert (limit.statistics().rejected, limit.statistics().queued) == (1, 0)

    run(main)


def test_the_deadline_ends_the_wait():
    """A deadline before the end of ``max_wait_s`` ends the wait with DeadlineExceeded."""

    async def main(loop):
        limit = waiting_limit(loop, name="faces")
        await limit.acquire()
        with pytest.raises(si.DeadlineExceeded, match=r"^concurrency limit 'faces' had no permit for a call before"):
            await limit.acquire(deadline_ns=loop.clock() + 50_000_000)
        assert loop.time() == 0.05
        assert (limit.statistics().infeasible, limit.statistics().rejected) == (1, 0)

    run(main)


def test_places_go_by_priority_and_arrival():
    """Permits go to waiting calls by priority, then by arrival, and a later call does not overtake them."""

    async def main(loop):
        limit = waiting_limit(loop, limit=3, reserve=0.0)
        held = [await limit.acquire() for _ in range(3)]
        order = []

        async def enter(name, priority):
            permit = await limit.acquire(priority=priority)
            order.append(name)
            held.append(permit)

        tasks = []
        for name, priority in (("a", 1), ("b", 0), ("c", 1), ("d", 0)):
            tasks.append(asyncio.ensure_future(enter(name, priority)))
            await settle()
        while len(order) < 4:
            limit.release(held.pop(0))
            late = asyncio.ensure_future(enter("late", 1))
            tasks.append(late)
            await settle()
        assert order == ["b", "d", "a", "c"]
        while held:
            limit.release(held.pop())
            await settle()
        await asyncio.gather(*tasks)

    run(main)


def test_new_call_does_not_overtake_one_just_permitted():
    """A call does not overtake one that has just got its permit.

    Queued calls continue in their order, also if one turn returns more permits than calls are queued.
    """

    async def main(loop):
        limit = waiting_limit(loop, limit=3)
        held = [await limit.acquire() for _ in range(3)]
        went_on = []

        async def call(number):
            permit = await limit.acquire()
            went_on.append(number)
            limit.release(permit)

        waiting = asyncio.ensure_future(call(0))
        await asyncio.sleep(0.1)
        later = [asyncio.ensure_future(call(1))]
        loop.call_soon(lambda: later.append(asyncio.ensure_future(call(2))))
        for permit in held:
            limit.release(permit)
        await call(3)
        await asyncio.gather(waiting, *later)
        assert went_on == [0, 3, 1, 2]
        assert (limit.statistics().in_flight, limit.statistics().queued) == (0, 0)

    run(main)


def test_cancelled_call_that_yielded_gives_permit_back():
    """A call that has its permit, lets another call go first and is then cancelled gives the permit back."""

    async def main(loop):
        limit = waiting_limit(loop, limit=2)
        held = [await limit.acquire() for _ in range(2)]
        waiting = asyncio.ensure_future(limit.acquire())
        await asyncio.sleep(0.1)
        later = asyncio.ensure_future(limit.acquire())
        for permit in held:
            limit.release(permit)
        loop.call_soon(later.cancel)
        limit.release(await waiting)
        await settle()
        assert later.cancelled()
        assert limit.statistics().in_flight == 0

    run(main)


def test_call_after_queued_calls_proceed_does_not_wait():
    """A call does not wait when all calls that were queued before it have proceeded."""

    async def main(loop):
        limit = waiting_limit(loop, limit=2)
        held = [await limit.acquire() for _ in range(2)]
        waiting = asyncio.ensure_future(limit.acquire())
        await asyncio.sleep(0.1)
        limit.release(held[0])
        await waiting
        limit.release(held[1])
        with pytest.raises(StopIteration):  # it has its permit without a turn of the loop
            limit.acquire().send(None)

    run(main)


def test_urgent_call_passes_those_held_by_the_reserve():
    """A call that may use the reserve does not wait behind one that may not."""

    async def main(loop):
        limit = waiting_limit(loop, limit=2, reserve=0.5)
        first = await limit.acquire()
        waits = asyncio.ensure_future(limit.acquire(priority=1))
        await settle()
        second = await limit.acquire(priority=0)
        assert not waits.done()
        limit.release(first)
        await settle()
        assert not waits.done()
        limit.release(second)
        assert await waits > 0

    run(main)


@pytest.mark.parametrize("gives_back_first", [False, True], ids=["before", "with"])
def test_a_cancelled_call_leaves_the_queue(gives_back_first):
    """If a waiting call is cancelled, even in the turn in which it got a permit, the next call gets the permit."""

    async def main(loop):
        limit = waiting_limit(loop)
        first = await limit.acquire()
        leaves = asyncio.ensure_future(limit.acquire())
        stays = asyncio.ensure_future(limit.acquire())
        await settle()
        if gives_back_first:
            limit.release(first)
            leaves.cancel()
        else:
            leaves.cancel()
            await settle()
            limit.release(first)
        permit = await stays
        assert leaves.cancelled()
        limit.release(permit)
        seen = limit.statistics()
        assert (seen.in_flight, seen.queued, seen.cancelled) == (0, 0, 0 if gives_back_first else 1)
        assert seen.ignored == (3 if gives_back_first else 2)

    run(main)


def test_calls_beyond_max_waiting_are_rejected():
    """Beyond ``max_waiting`` a call is rejected without a wait."""

    async def main(loop):
        limit = waiting_limit(loop, max_waiting=2)
        await limit.acquire()
        tasks = [asyncio.ensure_future(limit.acquire()) for _ in range(2)]
        await settle()
        with pytest.raises(si.Overloaded):
            await limit.acquire()
        assert loop.time() == 0.0
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [si.Overloaded] * 2

    run(main)


def test_stack_waits_instead_of_rejecting():
    """With a limit of two, ten concurrent requests run two at a time; none is rejected, although half of them fail."""

    async def main(loop):
        model = ScriptedBackend(*[[1.0], ConnectionError("gone")] * 5, duration_s=0.1)
        limit = waiting_limit(loop, limit=2)
        async with si.Stack(limit, model, clock=loop.clock) as service:
            ends = await asyncio.gather(*(service(1.0) for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(end, si.BackendError) for end in ends) == 5
        assert loop.time() == pytest.approx(0.5)
        assert limit.statistics().in_flight == 0

    run(main)


def test_functions_blocks_and_backends_wait():
    """An async function, ``async with guard()`` and a limited backend wait; a synchronous call is rejected."""

    async def main(loop):
        limit = waiting_limit(loop)

        @limit
        async def work():
            await asyncio.sleep(0.1)

        async def block():
            async with limit.guard():
                await asyncio.sleep(0.1)

        backend = limit.wrap(ScriptedBackend(duration_s=0.1))
        batch = si.Batch([1.0], [Request(1.0)])
        calls = asyncio.gather(work(), block(), work(), backend.infer(batch))
        await settle()
        with pytest.raises(si.Overloaded), limit.guard():
            pass
        with pytest.raises(si.Overloaded):
            limit.wrap(lambda: 1)()
        assert limit.try_acquire() == 0
        await calls
        assert loop.time() == pytest.approx(0.4)

    run(main)


def test_guard_of_rejected_call_can_be_entered_again():
    """A guard is for one call, but it can be entered again after a rejection, which is no call."""

    async def main(loop):
        limit = waiting_limit(loop)
        permit = await limit.acquire()
        guard = limit.guard()
        with pytest.raises(si.Overloaded):
            await guard.__aenter__()
        limit.release(permit)
        async with guard:
            with pytest.raises(RuntimeError, match="a guard is for one call"):
                await guard.__aenter__()

    run(main)


def test_admission_counts_free_queue_places():
    """A full limit accepts a request if its queue has a free place and a permit is expected before the deadline."""

    async def main(loop):
        limit = waiting_limit(loop, max_waiting=1)
        limited = limit.wrap(_Answers())
        for _ in range(12):
            permit = await limit.acquire()
            await asyncio.sleep(0.1)
            limit.record(permit)
        await limit.acquire()
        assert limited.admission(Request(1.0), loop.clock()).ok
        soon = Request(1.0, deadline_ns=loop.clock() + 1000)
        assert limited.admission(soon, loop.clock()).reason == "limit"
        task = asyncio.ensure_future(limit.acquire())
        await settle()
        assert limited.admission(Request(1.0), loop.clock()).reason == "limit"
        task.cancel()

    run(main)


@pytest.mark.parametrize(
    ("waiting", "priority", "left_s", "ok"),
    [(4, 0, 0.55, True), (4, 0, 0.45, False), (4, -1, 0.15, True), (9, 0, None, True), (10, 0, None, False)],
    ids=["in time", "late", "more urgent", "soon enough", "waits too long"],
)
def test_admission_counts_the_calls_that_wait(waiting, priority, left_s, ok):
    """A request is accepted if the calls before it, of 0.1 s each, leave it a permit by its deadline and within 1 s."""

    async def main(loop):
        limit = waiting_limit(loop, limit=1, max_wait_s=1.0)
        limited = limit.wrap(_Answers())
        for _ in range(12):
            permit = await limit.acquire()
            await asyncio.sleep(0.1)
            limit.record(permit)
        permit = await limit.acquire()
        tasks = [asyncio.ensure_future(limit.acquire()) for _ in range(waiting)]
        await settle()
        deadline_ns = None if left_s is None else loop.clock() + round(left_s * 1e9)
        verdict = limited.admission(Request(1.0, priority=priority, deadline_ns=deadline_ns), loop.clock())
        for task in tasks:
            task.cancel()
        return verdict

    assert run(main).ok is ok


class _Answers:
    async def call(self, request):
        return si.Response(1.0)


def test_a_permit_from_another_thread_wakes_the_loop():
    """A permit that another thread releases reaches the call that waits on the loop."""

    async def main():
        limit = ConcurrencyLimit(limit=1, max_wait_s=30.0)
        permit = await limit.acquire()
        waits = asyncio.ensure_future(limit.acquire())
        await settle()
        thread = threading.Thread(target=limit.release, args=(permit,))
        thread.start()
        assert await waits > 0
        thread.join()

    asyncio.run(main())


def test_another_loop_is_rejected_while_calls_wait():
    """Calls wait on one event loop at a time; after this loop has closed, they can wait on another one."""
    limit = ConcurrencyLimit(limit=1, max_wait_s=30.0)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(limit.acquire())
    waits = loop.create_task(limit.acquire())
    loop.run_until_complete(settle())

    async def other():
        with pytest.raises(RuntimeError, match="calls of another event loop wait"):
            await limit.acquire()

    asyncio.run(other())
    waits.cancel()
    loop.run_until_complete(settle())
    loop.close()

    async def after():
        with pytest.raises(si.DeadlineExceeded):
            await limit.acquire(deadline_ns=limit.now() + 1000)

    asyncio.run(after())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_wait_s": -1.0}, "max_wait_s: expected a finite number of seconds"),
        ({"max_waiting": 0}, "max_waiting: expected a whole number ≥ 1"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        ConcurrencyLimit(**settings)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_queues_its_own_calls():
    """In a forked process, calls queue although the parent has queued calls, whose loop does not run in the child."""

    async def main(loop):
        limit = waiting_limit(loop)
        first = await limit.acquire()
        second = asyncio.ensure_future(limit.acquire())
        await settle()

        def serve():
            asyncio.events._set_running_loop(None)

            async def both():
                own = await limit.acquire()
                waiting = asyncio.ensure_future(limit.acquire())
                await settle()
                limit.record(own)
                return await waiting

            return asyncio.run(both())

        status = status_of_child(serve)
        limit.record(first)
        limit.record(await second)
        return status

    assert run(main) == 0
