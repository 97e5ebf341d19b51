"""Single flight among tasks: any task can leave, fail or be cancelled, in any turn of the loop."""

import asyncio
import contextlib
import contextvars
import gc
import itertools
import math
import time

import pytest

from streaminfer.caching.single_flight._flight_cy import Refreshes
from streaminfer.caching.single_flight.flight_context import CURRENT_FLIGHT
from streaminfer.caching.single_flight.flights import SingleFlight
from streaminfer.errors import Closed, DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.testing import VirtualLoop, run

pytestmark = pytest.mark.uncompiled


COMPLAINTS = []  # of all loops: a loop complains when its garbage is collected, which may be in a later test


class Work:
    """Computation that takes some turns of the loop and ends by a script; it must not run twice at once."""

    def __init__(self, *script, turns=2, after_s=None):
        self.script = list(script)
        self.turns = turns
        self.after_s = after_s
        self.running = 0
        self.begun = 0
        self.cancelled = 0

    async def __call__(self):
        assert self.running == 0, "two computations of one key"
        self.running += 1
        self.begun += 1
        try:
            if self.after_s is not None:
                await asyncio.sleep(self.after_s)
            for _ in range(self.turns):
                await asyncio.sleep(0)
            step = self.script.pop(0) if self.script else "ok"
            if isinstance(step, BaseException):
                raise step
            return step  # noqa: TRY300
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def quiet(main, *args, thorough=True):
    """Run a scenario and check that it leaves nothing: no task, no flight, no unretrieved error."""

    async def scenario(loop):
        loop.set_exception_handler(lambda _, context: COMPLAINTS.append(context))
        flights = SingleFlight(loop.clock)
        result = await main(flights, loop, *args)
        for _ in range(5):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert flights.statistics().in_flight == 0
        assert not flights.here()._owners
        return result, flights.statistics()

    result = run(scenario)
    if thorough:
        gc.collect()
    assert COMPLAINTS == []
    return result


def ask(flights, loop, work, **how):
    return loop.create_task(flights.here().share("key", (work,), **how))


async def outcome(task):
    try:
        return (await task)[0]
    except asyncio.CancelledError:
        return "cancelled"
    except Exception as error:
        return error


@pytest.mark.parametrize("script", [("ok",), (ValueError("1"), "ok"), (ValueError("1"), ValueError("2"), "ok")])
@pytest.mark.parametrize("turns", [0, 2])
def test_cancelled_at_every_turn(script, turns):
    """If any of three callers are cancelled, each at any turn, the others still get their full outcome."""

    async def play(flights, loop, cancels):
        work = Work(*script, turns=turns)
        tasks = [ask(flights, loop, work) for _ in cancels]
        for turn in range(20):
            for task, when in zip(tasks, cancels, strict=True):
                if when == turn:
                    task.cancel()
            await asyncio.sleep(0)
        return [await outcome(task) for task in tasks], work

    failures = len(script) - 1
    last = 4 + len(script) * (turns + 3)  # all is over by then
    for cancels in itertools.product((None, *range(last)), (None, *range(0, last, 2)), (None, 1, 5)):
        (outcomes, work), statistics = quiet(play, cancels, thorough=False)
        for when, end in zip(cancels, outcomes, strict=True):
            assert end in ("ok", "cancelled") or isinstance(end, ValueError), (cancels, outcomes)
            assert when is not None or end != "cancelled", (cancels, outcomes)
        errors = [end for end in outcomes if isinstance(end, ValueError)]
        assert len(errors) <= failures  # each failure goes to one caller, while another caller can try
        # every caller that stayed and led no failed attempt got the value
        if all(when is None for when in cancels):
            assert outcomes.count("ok") == 3 - failures
            assert work.begun == failures + 1
            assert statistics.computations == failures + 1
            assert statistics.collapsed == 2
            assert statistics.leader_changes == failures
        if (None, "ok") in zip(cancels, outcomes, strict=True):
            assert work.cancelled == 0  # a caller waited all the time
    quiet(play, (None, 3, None))  # collects the garbage of all these loops, which would complain then


def test_cancelled_leader_does_not_affect_waiters():
    async def play(flights, loop):
        work = Work("ok", after_s=1.0)
        leader, *rest = [ask(flights, loop, work) for _ in range(3)]
        await asyncio.sleep(0.5)
        leader.cancel()
        assert [await outcome(task) for task in (leader, *rest)] == ["cancelled", "ok", "ok"]
        assert loop.time() == 1.0
        return work.begun

    begun, statistics = quiet(play)
    assert begun == 1
    assert statistics.abandoned == 0


def test_computation_without_waiters_is_cancelled():
    """A computation that no caller waits for is cancelled, and the next caller starts a new one."""

    async def play(flights, loop):
        work = Work("never", "ok", after_s=1.0)
        tasks = [ask(flights, loop, work) for _ in range(2)]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.sleep(0)
        assert work.cancelled == 1
        work.script = ["ok"]
        assert await outcome(ask(flights, loop, work)) == "ok"
        return work.begun

    begun, statistics = quiet(play)
    assert begun == 2
    assert (statistics.abandoned, statistics.failures) == (1, 0)


def test_uncancellable_computation_blocks_no_caller():
    """A computation that cannot be cancelled does not delay the next one of its key."""

    async def play(flights, loop):
        async def stubborn():
            try:
                await asyncio.sleep(1.0)
            except asyncio.CancelledError:
                await asyncio.sleep(5.0)
                raise ValueError("late") from None

        first = ask(flights, loop, stubborn)
        await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.wait({first})
        assert await outcome(ask(flights, loop, Work("ok"))) == "ok"
        assert loop.time() == 0.5
        await asyncio.sleep(6.0)

    quiet(play)


def test_errors_end_after_three_attempts():
    """A failing computation ends after three attempts, and each caller gets an error of its own."""

    async def play(flights, loop):
        work = Work(*(KeyError(number) for number in range(9)))
        return [await outcome(task) for task in [ask(flights, loop, work) for _ in range(6)]], work.begun

    (outcomes, begun), statistics = quiet(play)
    assert begun == 3
    assert [end.args for end in outcomes] == [(0,), (2,), (2,), (2,), (2,), (1,)]
    assert len({id(end) for end in outcomes}) == 6
    assert statistics.failures == 3


def test_invalid_input_is_not_retried():
    async def play(flights, loop):
        work = Work(InvalidInput("no"), "ok")
        return [await outcome(task) for task in [ask(flights, loop, work) for _ in range(3)]], work.begun

    (outcomes, begun), _ = quiet(play)
    assert begun == 1
    assert all(isinstance(end, InvalidInput) for end in outcomes)


def test_deadlines_of_leaders_are_not_counted():
    async def play(flights, loop):
        work = Work(*(DeadlineExceeded("mine") for _ in range(8)), "ok")
        return [await outcome(task) for task in [ask(flights, loop, work) for _ in range(10)]], work.begun

    (outcomes, begun), _ = quiet(play)
    assert begun == 9
    assert outcomes[2:4] == ["ok", "ok"]


def test_self_cancelled_computation_cancels_its_leader():
    """A computation that cancels itself cancels its leader alone."""

    async def play(flights, loop):
        work = Work(asyncio.CancelledError(), "ok")
        return [await outcome(task) for task in [ask(flights, loop, work) for _ in range(3)]]

    outcomes, _ = quiet(play)
    assert outcomes == ["cancelled", "ok", "ok"]


def test_waiter_ends_at_its_own_deadline():
    async def play(flights, loop):
        work = Work("ok", after_s=1.0)
        tasks = [ask(flights, loop, work, timeout_s=limit) for limit in (None, 0.25, 2.0)]
        ends = [await outcome(tasks[1])]
        assert loop.time() == 0.25
        return [*ends, await outcome(tasks[0]), await outcome(tasks[2])]

    outcomes, _ = quiet(play)
    assert isinstance(outcomes[0], DeadlineExceeded)
    assert outcomes[1:] == ["ok", "ok"]


def test_computation_outlives_its_leaders_deadline():
    """A leader whose deadline passes leaves the computation to the other callers."""

    async def play(flights, loop):
        work = Work("ok", after_s=1.0)
        tasks = [ask(flights, loop, work, timeout_s=limit) for limit in (0.25, None)]
        return [await outcome(task) for task in tasks], work.begun

    (outcomes, begun), _ = quiet(play)
    assert isinstance(outcomes[0], DeadlineExceeded)
    assert outcomes[1] == "ok"
    assert begun == 1


def test_thousand_callers_share_one_computation():
    """A thousand callers share one computation, and none of them is late."""

    async def play(flights, loop):
        work = Work("ok", after_s=0.05)
        ends = []

        async def caller():
            await flights.here().share("key", (work,))
            ends.append(loop.time())

        await asyncio.gather(*(caller() for _ in range(1000)))
        return ends, work.begun

    (ends, begun), statistics = quiet(play)
    assert begun == 1
    assert len(ends) == 1000
    assert max(ends) <= 0.05 * 1.1
    assert statistics.collapsed == 999


@pytest.mark.parametrize("through", ["itself", "another", "a task", "two at once"])
def test_re_entrancy_is_an_error_and_not_a_deadlock(through):
    async def play(flights, loop):
        here = flights.here()

        async def outer():
            if through == "itself":
                await here.share("key", (outer,))
            elif through == "another":
                await here.share("other", (here.share, "key", (outer,)))
            elif through == "a task":
                await asyncio.gather(asyncio.create_task(here.share("key", (outer,))))
            else:
                await asyncio.sleep(1)
                await here.share("other", (outer,))

        async def other():
            await asyncio.sleep(2)
            await here.share("key", (outer,))

        tasks = [ask(flights, loop, outer)]
        if through == "two at once":
            tasks.append(loop.create_task(here.share("other", (other,))))
        return [await outcome(task) for task in tasks]

    outcomes, _ = quiet(play)
    assert all(isinstance(end, RuntimeError) and "re-entrant" in str(end) for end in outcomes)


def test_re_entrant_wait_cannot_be_awaited_again():
    """A wait that failed as re-entrant cannot be awaited again."""

    async def play(flights, loop):
        here = flights.here()

        async def outer():
            again = here.share("key", (outer,))
            with pytest.raises(RuntimeError, match="re-entrant"):
                await again
            with pytest.raises(RuntimeError, match="awaited before"):
                await again
            by_hand = here.share("other", (Work(after_s=9.0),))
            by_hand.send(None)
            by_hand.close()
            by_hand.close()  # it leaves once
            return "ok"

        return await outcome(ask(flights, loop, outer))

    end, _ = quiet(play)
    assert end == "ok"


def test_cancellation_at_the_deadline_wins():
    async def play(flights, loop):
        tasks = []

        def cancel():
            tasks[0].cancel()

        loop.call_later(1.0, cancel)
        tasks.append(ask(flights, loop, Work(after_s=9.0), timeout_s=1.0))
        return await outcome(tasks[0])

    end, _ = quiet(play)
    assert end == "cancelled"


@pytest.mark.parametrize("refreshed", [True, False])
def test_failure_with_a_leader_is_no_refresh_failure(refreshed, caplog):
    """A failure of a computation that a caller leads or led is not counted as a refresh failure."""

    async def play(flights, loop):
        here = flights.here()
        work = Work(OSError("1"), OSError("2"), "ok", after_s=1.0)
        if refreshed:
            here.refresh("key", (work,), refreshes=Refreshes(), limit_s=60.0)
        first = ask(flights, loop, work)
        await asyncio.sleep(0.5)
        second = ask(flights, loop, work)
        third = ask(flights, loop, work)
        await asyncio.sleep(0)
        if not refreshed:
            first.cancel()
        return [await outcome(task) for task in (first, second, third)]

    outcomes, statistics = quiet(play)
    assert statistics.refresh_failures == len(caplog.records) == (1 if refreshed else 0)
    assert statistics.failures == 2
    assert statistics.computations == 3
    assert outcomes[-1] == "ok"


def test_computation_can_wait_for_other_keys():
    async def play(flights, loop):
        here = flights.here()

        async def inner():
            await asyncio.sleep(1)
            return "inner"

        async def outer():
            first, _ = await here.share("inner", (inner,))
            second, _ = await here.share("inner", (inner,))
            return first + second

        return [await outcome(task) for task in [ask(flights, loop, outer) for _ in range(2)]]

    outcomes, _ = quiet(play)
    assert outcomes == ["innerinner"] * 2


def test_each_attempt_runs_in_its_leaders_context():
    name = contextvars.ContextVar("name")

    async def play(flights, loop):
        seen = []

        async def work():
            seen.append(name.get())
            await asyncio.sleep(0)
            if len(seen) == 1:
                raise ValueError
            return "ok"

        tasks = []
        for who in ("a", "b"):
            context = contextvars.copy_context()
            context.run(name.set, who)
            tasks.append(loop.create_task(flights.here().share("key", (work,)), context=context))
        await asyncio.wait(tasks)
        return [await outcome(task) for task in tasks], seen

    (outcomes, seen), _ = quiet(play)
    assert isinstance(outcomes[0], ValueError)
    assert outcomes[1] == "ok"
    assert seen == ["a", "b"]


def test_refresh_runs_once_and_logs_its_failure(caplog):
    refreshes = Refreshes()

    async def play(flights, loop):
        here = flights.here()
        work = Work(OSError("down"), "ok", "ok", after_s=0.1)
        for _ in range(3):
            here.refresh("key", (work,), refreshes=refreshes, limit_s=60.0)
        await asyncio.sleep(0.2)
        assert work.begun == 1
        here.refresh("key", (work,), refreshes=refreshes, limit_s=60.0)  # paused for a second
        await asyncio.sleep(0.85)
        assert work.begun == 1
        await asyncio.sleep(0.1)
        here.refresh("key", (work,), refreshes=refreshes, limit_s=60.0)
        await asyncio.sleep(0.2)
        here.refresh("key", (work,), refreshes=refreshes, limit_s=60.0)
        await asyncio.sleep(0.2)
        return work.begun

    begun, statistics = quiet(play)
    assert begun == 3
    assert statistics.refreshes == statistics.computations == 3
    assert statistics.refresh_failures == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "OSError: down" in caplog.text


@pytest.mark.parametrize("first", ["ok", Overloaded("full")])
def test_waiter_of_a_refresh_gets_value_or_computes(first, caplog):
    """A caller that waits for a refresh gets its value, or leads a computation if the refresh fails."""

    async def play(flights, loop):
        here = flights.here()
        work = Work(first, "ok", after_s=1.0)
        here.refresh("key", (work,), refreshes=Refreshes(), limit_s=60.0)
        await asyncio.sleep(0.5)
        stays, goes = ask(flights, loop, work), ask(flights, loop, work)
        await asyncio.sleep(0.25)
        goes.cancel()
        return [await outcome(task) for task in (stays, goes)], work.begun, loop.time()

    (outcomes, begun, ended), _ = quiet(play)
    assert outcomes == ["ok", "cancelled"]
    assert (begun, ended) == ((1, 1.0) if first == "ok" else (2, 2.0))


@pytest.mark.parametrize(("first", "takes_s"), [(Overloaded("full"), 1.0), ("late", 3.0)])
def test_attempt_after_failed_refresh_is_abandoned(first, takes_s):
    """An attempt after a failed refresh is abandoned when its last waiter leaves.

    It would otherwise run without a limit, and every later caller of the key would wait for it.
    """

    async def play(flights, loop):
        here = flights.here()
        here.refresh("key", (Work(first, after_s=takes_s),), refreshes=Refreshes(), limit_s=1.25)
        await asyncio.sleep(0.5)
        hung = Work(after_s=math.inf)
        leads = ask(flights, loop, hung)
        await asyncio.sleep(1.0)
        leads.cancel()
        ends = await outcome(leads), await outcome(ask(flights, loop, Work("ok")))
        await asyncio.sleep(takes_s)
        return ends, hung.begun, hung.cancelled

    (ends, begun, cancelled), statistics = quiet(play)
    assert ends == ("cancelled", "ok")
    assert begun == cancelled == statistics.abandoned == 1


@pytest.mark.parametrize("drain", [True, False])
def test_stop_ends_the_flights_of_one_owner_only(drain):
    async def play(flights, loop):
        here = flights.here()
        tasks = [ask(flights, loop, Work("ok", after_s=1.0), owner="mine") for _ in range(3)]
        here.refresh("fresh", (Work("ok", after_s=2.0),), owner="mine", refreshes=Refreshes(), limit_s=60.0)
        other = loop.create_task(here.share("other", (Work("ok", after_s=3.0),), owner="yours"))
        await asyncio.sleep(0.5)
        await here.stop("mine", drain=drain)
        ended = loop.time()
        return [await outcome(task) for task in tasks], ended, await outcome(other)

    (outcomes, ended, other), _ = quiet(play)
    assert other == "ok"
    if drain:
        assert (outcomes, ended) == (["ok"] * 3, 2.0)
    else:
        assert all(isinstance(end, Closed) for end in outcomes)
        assert ended == 0.5


def test_flights_end_with_their_loop():
    """The end of a loop, as by ``asyncio.run``, cancels all flights at once, and no computation begins afterwards."""
    complaints = []
    work = Work(after_s=10.0)

    async def main(loop):
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        flights = SingleFlight(loop.clock)
        tasks = [ask(flights, loop, work) for _ in range(3)]
        flights.here().refresh("other", (Work(after_s=10.0),), refreshes=Refreshes(), limit_s=60.0)
        await asyncio.sleep(1.0)
        return tasks

    tasks = run(main)
    assert all(task.cancelled() for task in tasks)
    assert work.begun == 1
    del tasks
    gc.collect()
    assert complaints == []


def test_a_stop_tells_waiters_at_once():
    """A stop ends the waiters at once, before the cancelled computation has ended."""

    async def play(flights, loop):
        async def slow_to_end():
            try:
                await asyncio.sleep(60.0)
            finally:
                await asyncio.sleep(0.5)

        waiter = ask(flights, loop, slow_to_end, owner="mine")
        await asyncio.sleep(1.0)
        begun_s = loop.time()
        stopping = loop.create_task(flights.here().stop("mine", drain=False))
        told, told_s = await outcome(waiter), loop.time()
        await stopping
        return told, told_s - begun_s, loop.time() - begun_s

    (told, told_s, stopped_s), _ = quiet(play)

    assert isinstance(told, Closed)
    assert (told_s, stopped_s) == (0.0, pytest.approx(0.5))


def test_each_loop_has_flights_of_its_own():
    flights = SingleFlight(time.monotonic_ns)

    async def main(loop):
        work = Work("ok")
        await outcome(ask(flights, loop, work))
        return flights.here()

    assert run(main) is not run(main)


def test_waiter_cancelled_by_an_earlier_waiter():
    """A waiter can be cancelled by another waiter that continues first.

    All waiters get the outcome and then continue one after another, so the first can still cancel the others.
    """

    async def play(flights, loop):
        tasks = []

        async def first():
            return await outcome(ask(flights, loop, Work("ok", after_s=1.0)))

        async def canceller():
            shared, _ = await flights.here().share("key", (Work("never"),))
            tasks[2].cancel("because")
            return shared

        tasks.append(loop.create_task(first()))
        await asyncio.sleep(0.5)
        tasks.append(loop.create_task(canceller()))
        tasks += [ask(flights, loop, Work("never")) for _ in range(2)]
        ends = [await asyncio.gather(each, return_exceptions=True) for each in tasks]
        return [end[0] for end in ends]

    (first, canceller, cancelled, other), _ = quiet(play)
    assert (first, canceller, other) == ("ok", "ok", ("ok", False))
    assert isinstance(cancelled, asyncio.CancelledError)


def test_the_message_of_a_cancellation_arrives():
    async def play(flights, loop):
        seen = []

        async def caller():
            try:
                await flights.here().share("key", (Work("ok", after_s=1.0),))
            except asyncio.CancelledError as error:
                seen.append(error.args)
                raise

        for message in ("enough", None):
            task = loop.create_task(caller())
            await asyncio.sleep(0.5)
            task.cancel(message)
            task.cancel("again")  # only the first message arrives
            await asyncio.wait({task})
        return seen

    seen, _ = quiet(play)
    assert seen == [("enough",), ()]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_interrupt_in_woken_waiter_spares_the_others(interruption):
    """An interrupt in a waiter that was woken takes no result from the other waiters."""
    ends = []
    tasks = []
    interrupted = False

    async def work():
        await asyncio.sleep(1.0)
        asyncio.get_running_loop().call_soon(tasks[3].cancel)  # in the turn in which the flight ends
        return "ok"

    async def main(loop):
        flights = SingleFlight(loop.clock)

        async def caller(number):
            nonlocal interrupted
            try:
                await flights.here().share("key", (work,))
            except asyncio.CancelledError:
                ends.append((number, "cancelled"))
                return
            if number == 1:
                interrupted = True
                raise interruption
            ends.append((number, interrupted))

        tasks.extend(loop.create_task(caller(number)) for number in range(5))
        await asyncio.sleep(0.5)
        await asyncio.wait(tasks[2:])
        assert isinstance(tasks[1].exception(), interruption)

    complaints = []
    loop = VirtualLoop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    done = loop.create_task(main(loop))
    with pytest.raises(interruption):
        loop.run_until_complete(done)
    loop.run_until_complete(done)
    loop.close()
    assert sorted(ends, key=str) == [(0, False), (2, True), (3, "cancelled"), (4, True)]
    assert complaints == []


@pytest.mark.parametrize("around", [asyncio.gather, lambda it: asyncio.wait_for(it, 5.0), asyncio.shield])
def test_share_returns_a_coroutine_for_asyncio(around):
    async def play(flights, loop):
        return await around(flights.here().share("key", (Work("ok", after_s=1.0),)))

    got, _ = quiet(play)
    assert got in (("ok", True), [("ok", True)])


def test_share_is_awaited_once_and_only_by_a_task():
    """The awaitable that `share` returns can be awaited once, and only a task can continue it."""

    async def play(flights, loop):
        here = flights.here()
        shared = here.share("key", (Work("ok"),))
        assert await shared == ("ok", True)
        with pytest.raises(RuntimeError, match="awaited before"):
            await shared

        by_hand = here.share("key", (Work("never", after_s=1.0),))
        assert by_hand.send(None) is by_hand
        with pytest.raises(RuntimeError, match="before it was told"):
            next(iter(by_hand))
        by_hand.close()
        by_hand.close()

        unborn = here.share("key", (Work("never"),))
        with pytest.raises(KeyError):
            unborn.throw(KeyError, None, None)
        with pytest.raises(RuntimeError, match="awaited before"):
            await unborn
        with pytest.raises(ValueError, match="mine") as caught:
            here.share("key", (Work("never"),)).throw(ValueError, ValueError("mine"), None)
        with pytest.raises(ValueError, match="mine"):
            here.share("key", (Work("never"),)).throw(caught.value)

    _, statistics = quiet(play)
    assert (statistics.computations, statistics.abandoned) == (2, 1)


def test_coroutine_closed_while_waiting_leaves():
    """A coroutine that is closed while it waits leaves its flight."""

    async def play(flights, loop):
        async def caller():
            await flights.here().share("key", (Work("never", after_s=1.0),))

        coroutine = caller()
        coroutine.send(None)
        assert flights.statistics().in_flight == 1
        coroutine.close()
        assert flights.statistics().in_flight == 0

    quiet(play)


def test_unneeded_deadline_leaves_no_timer():
    """A deadline that was not needed leaves no timer."""

    async def play(flights, loop):
        before = len(loop._scheduled)
        task = ask(flights, loop, Work("ok", turns=1), timeout_s=100.0)
        assert await outcome(task) == "ok"
        return sum(not handle.cancelled() for handle in loop._scheduled) - before

    left, _ = quiet(play)
    assert left == 0


def test_leader_enforcing_its_deadline_has_no_timer():
    """A leader that enforces its own deadline needs no timer; each waiter has a timer."""

    async def play(flights, loop):
        work = Work("ok", after_s=2.0)
        leader = ask(flights, loop, work, timeout_s=1.0, enforced=True)
        await asyncio.sleep(0)
        follower = ask(flights, loop, work, timeout_s=1.0, enforced=True)
        return [await outcome(task) for task in (leader, follower)]

    (leader, follower), _ = quiet(play)
    assert leader == "ok"
    assert isinstance(follower, DeadlineExceeded)
    assert "1.000000 s" in str(follower)


def test_computation_that_fails_to_start_has_no_flight():
    async def play(flights, loop):
        def broken():
            raise TypeError("no coroutine")

        here = flights.here()
        with pytest.raises(TypeError, match="no coroutine"):
            await here.share("key", (broken,))
        with pytest.raises(TypeError):
            await here.share("key", (Work(after_s=9.0),), timeout_s="soon")

        def refuse(_, coroutine, **__):
            coroutine.close()
            raise MemoryError

        loop.set_task_factory(refuse)
        with pytest.raises(MemoryError):
            await here.share("key", (Work(),))
        loop.set_task_factory(None)
        assert flights.statistics().in_flight == 0
        assert await here.share("key", (Work("ok"),)) == ("ok", True)

    quiet(play)


def test_waits_of_a_computation_end_with_it():
    """A computation's wait for another key, which succeeds, fails or times out, leaves no edge in the graph."""

    async def play(flights, loop):
        here = flights.here()
        left = []

        async def outer():
            for step in ("ok", KeyError("no")):
                with contextlib.suppress(KeyError):
                    await here.share("inner", (Work(step),))
                left.append(len(CURRENT_FLIGHT.get().flight.waits_for))
            with contextlib.suppress(DeadlineExceeded):
                await here.share("inner", (Work(after_s=9.0),), timeout_s=1.0)
            left.append(len(CURRENT_FLIGHT.get().flight.waits_for))
            return "ok"

        assert await outcome(ask(flights, loop, outer)) == "ok"
        return left

    left, _ = quiet(play)
    assert left == [0, 0, 0]
