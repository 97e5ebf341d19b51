"""The failure of an observer or a listener is logged once, with its name, and never reaches a caller."""

import asyncio
import logging
import os
import threading
from collections import deque

import pytest

import streaminfer as si
from streaminfer._internal.listeners import MAX_ROUNDS, ListenerFailures, Listeners
from streaminfer.testing import FakeClock, ScriptedBackend, run

pytestmark = pytest.mark.uncompiled


class BrokenTelemetry(si.Telemetry):
    """Telemetry that fails in one of the three methods of an observer."""

    def __init__(self, method, error, **more):
        super().__init__("faces", **more)
        self.told = 0

        def broken(*_):
            self.told += 1
            raise error

        setattr(self, method, broken)


class Fails:
    """Listener that fails and has no name of its own."""

    def __init__(self, error):
        self.error, self.told = error, []

    def __call__(self, event):
        self.told.append(event)
        raise self.error

    def __repr__(self):
        return "Fails()"


ERRORS = pytest.mark.parametrize("error", [ValueError("mine"), asyncio.CancelledError()], ids=["error", "cancelled"])


@ERRORS
@pytest.mark.parametrize("method", ["begin", "answer", "fail"])
@pytest.mark.parametrize("outermost", [True, False], ids=["outermost", "behind another layer"])
def test_failing_observer_does_not_affect_responses(method, error, outermost, caplog):
    async def main(loop):
        telemetry = BrokenTelemetry(method, error)
        front = [telemetry] if outermost else [si.ConcurrencyLimit(), telemetry]
        batcher = si.AdaptiveBatcher(max_batch_size=1, policy="greedy")
        async with si.Stack(
            *front, batcher, ScriptedBackend(*[OSError("the model's")] * 2), clock=loop.clock
        ) as service:
            for _ in range(2):
                with pytest.raises(si.BackendError, match="the model's"):
                    await service(1.0)
            assert [await service(2.0), (await service.call(si.Request(3.0))).outputs] == [2.0, 3.0]
        return telemetry

    telemetry = run(main)
    assert telemetry.told == (4 if method == "begin" else 2)
    (line,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "the listener <Telemetry('faces')" in line.getMessage()
    assert line.exc_info[1] is error


@ERRORS
@pytest.mark.parametrize("method", ["begin", "fail"])
def test_broken_telemetry_of_function_loses_no_result(method, error, caplog):
    """Broken telemetry of a function loses no result and is logged once."""
    telemetry = BrokenTelemetry(method, error)

    def double(number):
        return 2 * number

    async def halve(number):
        return number / 2

    assert [telemetry.wrap(double)(2), asyncio.run(telemetry.wrap(halve)(2))] == [4, 1.0]
    with pytest.raises(TypeError):
        telemetry.wrap(double)({})
    assert len(caplog.records) == 1


@ERRORS
def test_failing_breaker_listener_affects_no_other(error, caplog):
    breaker = si.CircuitBreaker(minimum_calls=1, name="faces", clock=FakeClock())
    broken, heard = Fails(error), []
    breaker.listen(broken)
    breaker.listen(heard.append)
    for change in (breaker.force_open, breaker.reset, breaker.disable):
        change()
    assert len(heard) == len(broken.told) == 3
    (line,) = caplog.records
    assert line.getMessage().startswith("circuit breaker 'faces': the listener Fails() failed on: BreakerEvent(")


@ERRORS
def test_failing_cache_listener_affects_no_other(error, caplog):
    cache = si.EdgeCache(maxsize=1)
    broken, heard = Fails(error), []
    cache.listen(broken)
    cache.listen(heard.append)
    for number in range(4):
        cache[number] = number
    assert len(heard) == len(broken.told) == cache.statistics().listener_errors == 3
    (line,) = caplog.records
    assert line.getMessage().startswith("cache: the listener Fails() failed on: an entry that was evicted")


def test_each_listener_is_reported_once(caplog):
    failures = ListenerFailures("streaminfer", "a test")

    def other(event):
        raise ValueError(event)

    class Unprintable(Fails):
        def __repr__(self):
            raise ValueError("no text")

    for listener in (Fails(ValueError("mine")), other, other, Unprintable(ValueError("mine"))):
        try:
            listener(1)
        except ValueError as failure:
            failures.report(listener, "an event", failure)
    *told, unprintable = [line.getMessage().split(" failed")[0] for line in caplog.records]
    assert told == [
        "a test: the listener Fails()",
        "a test: the listener test_each_listener_is_reported_once.<locals>.other",
    ]
    assert unprintable.startswith("a test: the listener <Unprintable instance at ")


class TestListeners:
    """Delivery of events to listeners."""

    @pytest.fixture
    def pending(self):
        return deque()

    @pytest.fixture
    def listeners(self):
        return Listeners("streaminfer", "source", "a function")

    @pytest.fixture
    def deliver(self, listeners, pending):
        def take():
            while pending:
                yield pending.popleft()

        return lambda: listeners.deliver(take)

    def test_events_of_a_listener_come_after_its_return(self, listeners, pending, deliver):
        """A listener that causes an event gets this event after it has returned."""
        told = []

        def listener(event):
            told.append(("begin", event))
            if event == 1:
                pending.append(2)
                deliver()
            told.append(("end", event))

        listeners.add(listener)
        pending.append(1)
        deliver()

        assert told == [("begin", 1), ("end", 1), ("begin", 2), ("end", 2)]

    def test_endless_events_stop_after_some_rounds(self, listeners, deliver):
        """If a listener causes an event in each call, the delivery ends after ``MAX_ROUNDS`` rounds."""
        told = []
        listeners.add(told.append)
        listeners.deliver(lambda: [len(told)])

        assert told == list(range(MAX_ROUNDS))

    def test_an_interrupt_leaves_later_events(self, listeners, pending, deliver):
        """An interrupt in a listener reaches the caller; later events wait for the next delivery."""
        told = []

        def listener(event):
            if event == 1:
                raise KeyboardInterrupt
            told.append(event)

        listeners.add(listener)
        pending.extend([1, 2])
        with pytest.raises(KeyboardInterrupt):
            deliver()
        deliver()

        assert told == [2]
        assert listeners.errors == 0

    def test_changed_callback_gets_whether_listeners_exist(self, listeners):
        """The callback tells the owner whether there are listeners, so that it records events only then."""
        seen = []
        remove = listeners.add(print, seen.append)
        remove()

        assert seen == [True, False]
        assert len(listeners) == 0

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    @pytest.mark.parametrize("by", ["another thread", "the listener"])
    def test_a_forked_process_delivers_its_own_events(self, listeners, pending, deliver, by):
        """A forked child delivers its events, whether another thread of the parent delivers or a listener forks."""
        is_inside, go_on, told, statuses = threading.Event(), threading.Event(), [], []

        def status_of_a_child():
            child = os.fork()
            if child == 0:
                pending.append(2)
                deliver()
                os._exit(0 if told[-1] == 2 else 1)
            return os.waitpid(child, 0)[1]

        def listener(event):
            told.append(event)
            if event == 1 and by == "the listener":
                statuses.append(status_of_a_child())
            elif event == 1:
                is_inside.set()
                go_on.wait()

        listeners.add(listener)
        pending.append(1)
        if by == "the listener":
            deliver()
        else:
            delivering = threading.Thread(target=deliver)
            delivering.start()
            is_inside.wait()
            statuses.append(status_of_a_child())
            go_on.set()
            delivering.join()

        assert statuses == [0]
        assert told == [1]
