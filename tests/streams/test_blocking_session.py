"""Streams for synchronous callers: sources are read in their own threads, results in the caller's thread."""

import gc
import itertools
import sys
import threading

import pytest
from live_sources import add_up

import streaminfer as si
from streaminfer.streams import BlockingStreamSession, LatestOnly


def stack_of(function=lambda x: x + 1, **options):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=4), si.CpuBackend(function, executor="inline"), **options)


def source_threads():
    return [thread for thread in threading.enumerate() if thread.name == "streaminfer-source"]


def test_results_of_a_plain_iterable_come_in_order():
    with stack_of().blocking() as infer, BlockingStreamSession(infer) as session:
        results = list(session(float(number) for number in range(10)))
        assert [float(result.outputs) for result in results] == [number + 1.0 for number in range(10)]
        assert add_up(session.statistics())
        assert "0 streams open" in repr(session)


def test_blocking_source_is_read_in_its_own_thread():
    """The caller gets results while the source blocks, because a thread of its own reads the source."""
    is_taken, wake = threading.Event(), threading.Event()

    def camera():
        yield 0.0
        assert is_taken.wait(60)  # the first result comes before the second frame
        yield from (1.0, 2.0, 3.0)
        assert wake.wait(60)

    with stack_of().blocking() as infer, BlockingStreamSession(infer, policy=LatestOnly()) as session:
        numbers = []
        for result in session(camera()):
            numbers.append(result.number)
            is_taken.set()
            if result.number == 3:
                wake.set()
        assert (numbers[0], numbers[-1]) == (0, 3)
        assert session.statistics().received == 4


def test_leaving_loop_closes_stream_and_ends_thread():
    """A caller that leaves the `for` loop closes the stream and ends the thread of its source."""

    def endless():
        while True:
            yield 1.0

    with stack_of().blocking() as infer, BlockingStreamSession(infer) as session:
        for _ in session(endless()):
            break
        assert session.statistics().open_streams == 0
    for thread in source_threads():
        thread.join(60)
        assert not thread.is_alive()


def test_an_error_of_the_source_reaches_the_caller():
    def source():
        yield 1.0
        raise OSError("unplugged")

    def leaves():
        yield 1.0
        raise SystemExit

    with stack_of().blocking() as infer, BlockingStreamSession(infer) as session:
        with pytest.raises(OSError, match="unplugged"):
            list(session(source()))
        with pytest.raises(RuntimeError, match="the source: SystemExit"):
            list(session(leaves()))


def test_many_sources_have_one_caller():
    async def later():
        yield 7.0

    with stack_of().blocking() as infer, BlockingStreamSession(infer) as session:
        session.add([1.0, 2.0], stream_id="a")
        session.add(later())
        assert session.add(iter([5.0])) != "a"
        assert sorted(float(result.outputs) for result in session) == [2.0, 3.0, 6.0, 8.0]
        session.add([1.0], stream_id="b")
        session.remove("b")
        assert session.statistics().open_streams == 0


def test_the_stop_of_the_stack_ends_the_streams():
    """If the stack stops, a loop over results gets `Closed`, as a result or an error, and the session can be closed."""

    def endless():
        while True:
            yield 1.0

    blocking = stack_of().blocking()
    blocking.start()
    session = BlockingStreamSession(blocking)
    stop = threading.Thread(target=blocking.stop)
    with pytest.raises(si.Closed):
        for result in session(endless()):
            if result.error is not None:
                raise result.error
            if result.number == 3:
                stop.start()
    stop.join()
    session.close()


def test_session_closed_after_stack_stays_closed():
    """A session that is closed after its stack stays closed when the stack starts again."""
    blocking = stack_of().blocking()
    with blocking:
        session = BlockingStreamSession(blocking)
    session.close()
    with blocking, pytest.raises(si.Closed, match="this session was closed"):
        list(session([1.0]))


def test_streams_open_at_stack_stop_count_as_ended():
    """Streams that are open when the stack stops count as ended, although no consumer has taken their results."""
    with stack_of().blocking() as infer:
        session = BlockingStreamSession(infer)
        session.add([1.0, 2.0])
    statistics = session.statistics()
    assert (statistics.open_streams, statistics.ended_streams, statistics.in_flight) == (0, 1, 0)
    session.close()


def test_results_can_be_closed_after_stack_restart():
    """Results can be closed after their stack has started again.

    Their stream ended with the event loop of the first start; the session works on the next event loop.
    """
    infer = stack_of().blocking()
    with infer:
        session = BlockingStreamSession(infer)
        results = session(itertools.repeat(1.0))
        next(results)
    with infer:
        results.close()
        assert [float(result.outputs) for result in session([2.0])] == [3.0]
        statistics = session.statistics()
        assert (statistics.open_streams, statistics.ended_streams) == (0, 2)
        assert add_up(statistics)
        session.close()


@pytest.mark.parametrize("is_added", [False, True], ids=["called", "added"])
def test_restart_of_the_stack_ends_the_loop(is_added):
    """After a restart, results that were not taken count as dropped (``closed``), and their consumer gets `Closed`."""
    second = threading.Event()

    def double(x):
        if x[0] == 1.0:
            second.set()
        return x * 2

    infer = stack_of(double).blocking()
    with infer:
        session = BlockingStreamSession(infer)
        if is_added:
            session.add([0.0, 1.0, 2.0])
        results = iter(session) if is_added else session([0.0, 1.0, 2.0])
        assert next(results).number == 0
        assert second.wait(60)
    with infer:
        with pytest.raises(si.Closed, match="stopped, and started again"):
            next(results)
        statistics = session.statistics()
        assert (statistics.delivered, set(statistics.dropped)) == (1, {"closed"})
        assert add_up(statistics)
        with pytest.raises(RuntimeError, match="no results of its own"):
            next(iter(session))
        session.close()


def test_a_session_needs_a_blocking_stack():
    with pytest.raises(TypeError, match="infer: expected a BlockingStack"):
        BlockingStreamSession(stack_of())


def test_statistics_outlive_the_stack():
    with stack_of().blocking() as infer, BlockingStreamSession(infer) as session:
        list(session([1.0, 2.0]))
    assert session.statistics().delivered == 2


def test_stop_iteration_of_source_is_an_error():
    """A `StopIteration` that the source's `__iter__` raises is an error, not the end of the source."""

    class Wrong:
        def __iter__(self):
            raise StopIteration

    with (
        stack_of().blocking() as infer,
        BlockingStreamSession(infer) as session,
        pytest.raises(RuntimeError, match="StopIteration"),
    ):
        list(session(Wrong()))


def test_results_collected_on_loop_close_stream(monkeypatch):
    """Results that are garbage-collected on the event loop close their stream.

    They do not use a blocking call, which would wait for the event loop that it runs on.
    """
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    def collect(x):
        gc.collect()
        return x

    gc.disable()
    try:
        with stack_of(collect).blocking() as infer, BlockingStreamSession(infer) as session:
            cycle = [session(itertools.repeat(1.0))]
            next(cycle[0])
            cycle.append(cycle)
            del cycle
            infer(1.0)
            infer(1.0)
            while session.statistics().open_streams:
                infer(1.0)
    finally:
        gc.enable()
    assert not unraisable


def test_results_collected_in_call_close_stream():
    """Results that are garbage-collected within a call of the stack close their stream.

    The collector can run at any allocation of the caller, also while the caller holds the lock of the stack.
    """
    with stack_of().blocking() as infer, BlockingStreamSession(infer) as session:

        def call():
            cycle = [session(itertools.repeat(1.0))]
            next(cycle[0])
            cycle.append(cycle)
            del cycle
            with infer._lock:
                gc.collect()

        caller = threading.Thread(target=call, daemon=True)
        caller.start()
        caller.join(10.0)

        assert not caller.is_alive()
        assert session.statistics().open_streams == 0
