"""The open loop and the closed loop."""

import asyncio
import contextlib
import gc
import math
import weakref

import pytest

from streaminfer.loadtest import OpenLoop, closed_loop
from streaminfer.testing import run

MS = 1_000_000


def virtually(call, due_ns, *, drain_s=None, **settings):
    async def main(_loop):
        sending = OpenLoop(call, due_ns, **settings)
        await sending.run(drain_s=drain_s)
        return sending

    return run(main)


async def answer(_number):
    await asyncio.sleep(0.005)


class TestOpenLoop:
    def test_requests_are_sent_when_due(self):
        """Requests are sent at their instants, even before the response to an earlier request."""
        due_ns = [10 * MS, 10 * MS, 11 * MS, 40 * MS]

        sending = virtually(answer, due_ns)

        assert list(sending.sent_ns) == due_ns
        assert list(sending.completed_ns) == [due + 5 * MS for due in due_ns]
        assert (sending.sent, sending.in_flight) == (4, 0)

    def test_overdue_requests_go_at_once(self):
        """Requests that are already due are sent at the first wake-up."""

        async def main(loop):
            await asyncio.sleep(1.0)
            sending = OpenLoop(answer, [1, 2, 3])
            await sending.run()
            return list(sending.sent_ns)

        assert all(sent >= 1_000 * MS for sent in run(main))

    def test_expected_error_is_recorded(self):
        """An expected error is recorded with the number of its request."""

        async def fail(number):
            if number == 1:
                raise ValueError("one")

        sending = virtually(fail, [1, 2, 3], errors=(ValueError,))

        assert {number: str(error) for number, error in sending.failures.items()} == {1: "one"}
        assert [completed > 0 for completed in sending.completed_ns] == [True, False, True]

    def test_errors_of_long_run_hold_one_request_per_class(self):
        """The errors of a long run hold one request of each class of error.

        The errors of HTTP clients refer to their requests, which would otherwise all stay in memory.
        """

        class Image:
            pass

        images = weakref.WeakSet()

        async def fail(number):
            image = Image()
            images.add(image)
            error = (ValueError, LookupError)[number % 2](f"request {number}")
            error.request = image
            raise error

        sending = virtually(fail, range(1, 101))

        del fail
        gc.collect()
        assert len(images) == 2
        assert list(map(type, sending.failures.values())) == [ValueError, LookupError] * 50
        assert list(map(str, sending.failures.values())) == ["request 0", "request 1"] * 50

    def test_other_error_ends_the_run(self):
        """An error of another class ends the run, which raises it and cancels the requests in flight."""
        cancelled = []

        async def fail(number):
            if number == 1:
                raise LookupError("no model")
            try:
                await asyncio.sleep(3600)
            finally:
                cancelled.append(number)

        with pytest.raises(LookupError, match="no model"):
            virtually(fail, [1, 2, 10**12], errors=(ValueError,))
        assert cancelled == [0]

    def test_service_that_cancels_itself(self):
        """A cancellation by the service ends its request only."""

        async def cancel(_number):
            raise asyncio.CancelledError

        sending = virtually(cancel, [1, 2])

        assert list(sending.completed_ns) == [0, 0]
        assert [type(error) for error in sending.failures.values()] == [asyncio.CancelledError] * 2

    def test_requests_in_flight_after_drain_are_cancelled(self):
        """Requests in flight after the drain are cancelled, and are neither completed nor failed."""

        async def hang(_number):
            await asyncio.Future()

        sending = virtually(hang, [1, 2], drain_s=1.0)

        assert (list(sending.completed_ns), sending.failures, sending.in_flight) == ([0, 0], {}, 0)

    def test_error_in_on_result_ends_the_run(self):
        """An error that ``on_result`` raises ends the run."""

        def refuse(number, _result):
            raise LookupError(number)

        with pytest.raises(LookupError, match="0"):
            virtually(answer, [1], on_result=refuse)

    def test_stop_iteration_in_on_result_ends_the_run(self):
        """A `StopIteration` of ``on_result`` ends the run too, although no future can hold it."""

        def refuse(_number, _result):
            raise StopIteration("no more results")

        with pytest.raises(RuntimeError, match="StopIteration"):
            virtually(answer, [1], on_result=refuse)

    def test_eager_tasks(self):
        """A call may complete before its task is known, as in eager loops from Python 3.12 on."""

        class Eager(asyncio.Future):
            """Task that runs to its end when it is made."""

            def __init__(self, loop, coroutine):
                super().__init__(loop=loop)
                with contextlib.suppress(StopIteration):
                    coroutine.send(None)
                self.set_result(None)

            def set_name(self, name):
                """Accept the name that loops of CPython 3.13 give a task after its factory has made it."""

        async def at_once(number):
            return number

        async def main(loop):
            loop.set_task_factory(lambda loop, coroutine, **_: Eager(loop, coroutine))
            sending = OpenLoop(at_once, [1, 2])
            await sending.run()
            return sending

        sending = run(main)

        assert all(sending.completed_ns)

    def test_call_that_ignores_its_cancellation(self):
        """The run ends although a call ignores its cancellation; the call is abandoned."""

        async def stubborn(number):
            while number == 1:
                try:
                    await asyncio.sleep(1_000)
                except asyncio.CancelledError:
                    if ended:
                        raise

        ended = []

        async def main(loop):
            sending = OpenLoop(stubborn, [1, 2])
            await sending.run(drain_s=1.0)
            ended.append(loop.time())
            return sending

        sending = run(main)

        assert ended == [pytest.approx(11.0, abs=0.1)]
        assert [completed > 0 for completed in sending.completed_ns] == [True, False]

    def test_empty_schedule_ends_immediately(self):
        """An empty schedule ends at once."""
        assert virtually(answer, []).sent == 0

    def test_service_that_is_no_coroutine_function(self):
        """A function that returns nothing to await fails its requests, and the run ends."""
        sending = virtually(lambda _number: 5, [1])

        assert isinstance(sending.failures[0], TypeError)


class Begun:
    """Callable for ``begin`` whose requests end at once, later, or never.

    Args:
        ends: end of each request, by number: a float is the seconds until a response, an exception fails the request
            at once, a function is called with ``receive``, and ``None`` never ends it.
    """

    def __init__(self, *ends):
        self.ends = ends
        self.cancelled = []

    def __call__(self, number, receive):
        end = self.ends[number]
        if isinstance(end, float):
            asyncio.get_running_loop().call_later(end, receive, number, None)
        elif isinstance(end, BaseException):
            receive(None, end)
        elif end is not None:
            end(receive)
        return _Call(self, number, receive)


class _Call:
    def __init__(self, begun, number, receive):
        self.begun, self.number, self.receive = begun, number, receive

    def cancel(self):
        self.begun.cancelled.append(self.number)
        self.receive(None, asyncio.CancelledError())


class TestOpenLoopOfToldEnds:
    """An open loop with ``begin``, which reports the end of each request and needs no task."""

    def test_begin_creates_no_task(self):
        """Requests that are sent through ``begin`` need no task."""
        results = {}

        async def main(loop):
            made = []
            loop.set_task_factory(lambda *given, **_: made.append(given))
            begun = Begun(0.005, 0.005)
            sending = OpenLoop(None, [10 * MS, 11 * MS], begin=begun, on_result=results.__setitem__)
            await sending.run()
            loop.set_task_factory(None)
            return sending, made

        sending, made = run(main)

        assert list(sending.sent_ns) == [10 * MS, 11 * MS]
        assert list(sending.completed_ns) == [15 * MS, 16 * MS]
        assert (results, made, sending.in_flight) == ({0: 0, 1: 1}, [], 0)

    def test_ends_before_begin_returns(self):
        """A request may end before ``begin`` returns; the run ends even if the last request does."""
        begun = Begun(lambda receive: receive("a", None), ValueError("b"))

        sending = virtually(None, [1, 2], begin=begun)

        assert [completed > 0 for completed in sending.completed_ns] == [True, False]
        assert {number: str(error) for number, error in sending.failures.items()} == {1: "b"}

    def test_begin_that_raises(self):
        def refuse(receive):
            raise ValueError("full")

        sending = virtually(None, [1], begin=Begun(refuse))

        assert str(sending.failures[0]) == "full"

    def test_service_that_cancels_itself(self):
        assert type(virtually(None, [1], begin=Begun(asyncio.CancelledError())).failures[0]) is asyncio.CancelledError

    def test_other_error_ends_the_run(self):
        """An error of another class ends the run, which raises it and cancels the requests in flight."""
        begun = Begun(None, LookupError("no model"))

        with pytest.raises(LookupError, match="no model"):
            virtually(None, [1, 2, 10**12], begin=begun, errors=(ValueError,))
        assert begun.cancelled == [0]

    def test_requests_in_flight_after_drain_are_cancelled(self):
        """Requests in flight after the drain are cancelled, and are neither completed nor failed."""
        begun = Begun(None, None)

        sending = virtually(None, [1, 2], drain_s=1.0, begin=begun)

        assert begun.cancelled == [0, 1]
        assert (list(sending.completed_ns), sending.failures, sending.in_flight) == ([0, 0], {}, 0)


def test_closed_loop_ends_all_callers_by_an_error():
    """An error of one caller ends the others too: none sends requests after the loop has ended."""
    sent = []

    async def call(number):
        sent.append(number)
        await asyncio.sleep(0.01)
        if number == 0:
            raise LookupError("no model")

    async def main(_loop):
        with pytest.raises(LookupError, match="no model"):
            await closed_loop(call, 3, 1.0)
        await asyncio.sleep(0.5)

    run(main)

    assert len(sent) <= 5


@pytest.mark.parametrize("turns", range(6))
def test_closed_loop_is_cancelled_at_any_turn(turns):
    """A closed loop may be cancelled even when the task of a request has not begun.

    Pytest reports coroutines that are never awaited.
    """
    in_flight = []

    async def call(number):
        in_flight.append(number)
        try:
            await asyncio.sleep(0.01)
        finally:
            in_flight.remove(number)

    async def main(_loop):
        sending = asyncio.ensure_future(closed_loop(call, 2, 1.0))
        for _ in range(turns):
            await asyncio.sleep(0)
        sending.cancel()
        await asyncio.wait({sending})
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)

    assert not in_flight


@pytest.mark.parametrize(
    ("callers", "seconds", "name"),
    [(0, 1.0, "callers"), (10**39, 1.0, "callers"), (1, math.nan, "seconds"), (1, 2**63, "seconds")],
)
def test_closed_loop_names_a_wrong_argument(callers, seconds, name):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        run(lambda _loop: closed_loop(answer, callers, seconds))


def test_closed_loop_waits_for_responses():
    """Two callers whose requests take 5 ms send 400 requests per second."""
    assert len(run(lambda _loop: closed_loop(answer, 2, 1.0))) == pytest.approx(400, abs=2)
