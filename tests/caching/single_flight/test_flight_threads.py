"""Single flight among threads. Threads wait for one another by events, each for a bounded time."""

import asyncio
import os
import signal
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from streaminfer.caching.single_flight._flight_cy import Refreshes
from streaminfer.caching.single_flight.flight_context import CURRENT_FLIGHT, no_store
from streaminfer.caching.single_flight.flights import SingleFlight
from streaminfer.errors import DeadlineExceeded, InvalidInput

pytestmark = pytest.mark.uncompiled

PATIENCE_S = 30.0


class Work:
    """Computation that waits until all its callers have come, and ends by a script."""

    def __init__(self, flights, joined, *script):
        self.flights = flights
        self.joined = joined
        self.script = list(script)
        self.begun = 0
        self.running = 0
        self.leaders = []

    def __call__(self):
        self.running += 1
        self.begun += 1
        self.leaders.append(threading.get_ident())
        assert self.running == 1, "two computations of one key"
        try:
            until = time.monotonic() + PATIENCE_S
            while self.flights.statistics().collapsed < self.joined:
                assert time.monotonic() < until, "they did not come"
                os.sched_yield()
            step = self.script.pop(0) if self.script else "ok"
            if isinstance(step, BaseException):
                raise step
            return step
        finally:
            self.running -= 1


def play(threads, *script):
    """Let several threads request one key; return their outcomes, the work and the statistics of the flights."""
    flights = SingleFlight(time.monotonic_ns)
    work = Work(flights, threads - 1, *script)

    def ask():
        try:
            return flights.threads.share("key", (work,))[0]
        except BaseException as error:
            return error

    with ThreadPoolExecutor(threads) as pool:
        asked = [pool.submit(ask) for _ in range(threads)]
        outcomes = [each.result(PATIENCE_S) for each in asked]
    statistics = flights.statistics()
    assert statistics.in_flight == 0
    return outcomes, work, statistics


def test_statistics_while_another_loop_begins():
    """An event loop that uses the cache for the first time waits until the flights of other loops are counted."""
    flights = SingleFlight(lambda: 0)
    loops = []

    async def begin():
        loops.append(asyncio.get_running_loop())
        flights.here()

    asyncio.run(begin())
    other = threading.Thread(target=lambda: asyncio.run(begin()))

    class Loops(weakref.WeakKeyDictionary):
        def values(self):
            for each in super().values():
                if other.ident is None:
                    other.start()
                    other.join(0.1)
                yield each

    flights._loops = Loops(flights._loops)
    assert flights.statistics().in_flight == 0
    other.join(PATIENCE_S)
    assert len(flights._loops) == len(loops) == 2


def test_one_thread_computes_for_all_callers():
    outcomes, work, statistics = play(16)
    assert outcomes == ["ok"] * 16
    assert work.begun == 1
    assert (statistics.computations, statistics.collapsed) == (1, 15)


def test_failed_leader_is_replaced_by_a_waiter(caplog):
    outcomes, work, statistics = play(8, ValueError("1"), ValueError("2"))
    assert (statistics.refresh_failures, caplog.records) == (0, [])
    assert sorted(map(str, outcomes)) == ["1", "2"] + ["ok"] * 6
    assert len(set(work.leaders)) == 3
    assert (statistics.failures, statistics.leader_changes) == (2, 2)


def test_all_waiters_get_an_error_after_three_failures():
    outcomes, work, _ = play(8, *(KeyError(number) for number in range(9)))
    assert work.begun == 3
    assert sorted(end.args[0] for end in outcomes) == [0, 1, 2, 2, 2, 2, 2, 2]
    assert len({id(end) for end in outcomes}) == 8


def test_invalid_input_is_final_and_deadlines_are_not():
    """`InvalidInput` ends all attempts, and an exceeded deadline does not count as a failed attempt."""
    outcomes, work, _ = play(4, InvalidInput("no"))
    assert work.begun == 1
    assert all(isinstance(end, InvalidInput) for end in outcomes)
    outcomes, work, _ = play(8, *(DeadlineExceeded("mine") for _ in range(7)))
    assert work.begun == 8
    assert outcomes.count("ok") == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_interrupted_leader_is_replaced_by_a_waiter(interruption):
    outcomes, work, _ = play(4, interruption(), interruption(), interruption())
    assert sum(isinstance(end, interruption) for end in outcomes) == 3
    assert outcomes.count("ok") == 1
    assert work.begun == 4


def test_interrupted_waiter_leaves_the_flight(request):
    """A signal interrupts the main thread while it waits for a key; the other threads continue."""
    interrupted = threading.Event()

    def interrupt_once(number, frame):
        if not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt_once)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    flights = SingleFlight(time.monotonic_ns)
    leading, release = threading.Event(), threading.Event()

    def work():
        leading.set()
        assert release.wait(PATIENCE_S)
        return "ok"

    def interrupt():
        until = time.monotonic() + PATIENCE_S
        while flights.statistics().collapsed < 1:
            assert time.monotonic() < until
            os.sched_yield()
        while not interrupted.is_set():  # a signal just before the wait for a lock does not end that wait
            assert time.monotonic() < until
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            os.sched_yield()

    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(flights.threads.share, "key", (work,))
        assert leading.wait(PATIENCE_S)
        killer = pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            flights.threads.share("key", (work,))
        killer.result(PATIENCE_S)
        assert flights.statistics().in_flight == 1
        release.set()
        assert leader.result(PATIENCE_S) == ("ok", True)
    assert flights.statistics().in_flight == 0


@pytest.mark.parametrize("through", ["itself", "another", "asyncio.to_thread"])
def test_re_entrancy_is_an_error_and_not_a_deadlock(through):
    flights = SingleFlight(time.monotonic_ns)

    def again():
        return flights.threads.share("key", (outer,))

    def outer():
        if through == "itself":
            return again()
        if through == "another":
            return flights.threads.share("other", (again,))
        return asyncio.run(asyncio.to_thread(again))

    with pytest.raises(RuntimeError, match="re-entrant"):
        again()
    assert flights.statistics().in_flight == 0


def test_threads_waiting_for_each_other_get_an_error():
    flights = SingleFlight(time.monotonic_ns)
    both = threading.Barrier(2)

    def ask(key, other):
        def work():
            both.wait(PATIENCE_S)
            return flights.threads.share(other, (lambda: "inner",))[0]

        return flights.threads.share(key, (work,))[0]

    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(ask, "a", "b"), pool.submit(ask, "b", "a")]
        errors = [each.exception(PATIENCE_S) for each in ends]
    told = [error for error in errors if error is not None]
    assert told
    assert all("re-entrant" in str(error) or isinstance(error, threading.BrokenBarrierError) for error in told)
    assert flights.statistics().in_flight == 0


def test_refresh_runs_in_a_thread_and_logs_failure(caplog):
    """A refresh runs in a thread of its own and logs its failure."""
    flights = SingleFlight(lambda: now_ns)
    done = threading.Event()
    now_ns = 0
    limits = {"refreshes": Refreshes(), "limit_s": PATIENCE_S}

    def fails():
        raise OSError("down")

    def wait_for_the_end():
        until = time.monotonic() + PATIENCE_S
        while flights.threads._refreshing:
            assert time.monotonic() < until
            os.sched_yield()

    flights.threads.refresh("key", (fails,), **limits)
    wait_for_the_end()
    assert "OSError: down" in caplog.text
    flights.threads.refresh("key", (done.set,), **limits)
    wait_for_the_end()
    assert not done.is_set()  # the key is paused for a second
    now_ns = 10**9
    flights.threads.refresh("key", (done.set,), **limits)
    wait_for_the_end()
    assert done.is_set()
    statistics = flights.statistics()
    assert (statistics.refreshes, statistics.refresh_failures, statistics.in_flight) == (2, 1, 0)
    assert statistics.computations == 2


def test_refreshing_threads_are_bounded():
    flights = SingleFlight(time.monotonic_ns)
    release = threading.Event()
    for limits in (
        {"refreshes": Refreshes(8), "limit_s": PATIENCE_S},
        {"refreshes": Refreshes(), "limit_s": PATIENCE_S},
    ):
        for _ in range(100):
            flights.threads.refresh(object(), (lambda: release.wait(PATIENCE_S),), **limits)
        assert flights.statistics().refreshes in (8, 64)
    assert flights.statistics().refreshes == 64
    release.set()
    until = time.monotonic() + PATIENCE_S
    while flights.threads._refreshing:
        assert time.monotonic() < until
        os.sched_yield()


def test_no_store_affects_only_its_own_computation():
    flights = SingleFlight(time.monotonic_ns)

    def storable():
        return CURRENT_FLIGHT.get().store

    no_store()  # no computation runs: no effect

    def inner():
        no_store()
        return storable()

    def outer():
        shared, _ = flights.threads.share("inner", (inner,))
        return shared, storable()

    assert flights.threads.share("outer", (outer,))[0] == (False, True)
    assert CURRENT_FLIGHT.get() is None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_no_flights():
    flights = SingleFlight(time.monotonic_ns)
    leading, release = threading.Event(), threading.Event()

    def work():
        leading.set()
        assert release.wait(PATIENCE_S)
        return "parent"

    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(flights.threads.share, "key", (work,))
        limits = {"refreshes": Refreshes(), "limit_s": PATIENCE_S}
        flights.threads.refresh("stale", (lambda: release.wait(PATIENCE_S),), **limits)
        assert leading.wait(PATIENCE_S)
        child = os.fork()
        if child == 0:
            value, led = flights.threads.share("key", (lambda: "child",))
            os._exit(0 if (value, led, flights.threads._refreshing) == ("child", True, 0) else 1)
        _, status = os.waitpid(child, 0)
        release.set()
        assert leader.result(PATIENCE_S) == ("parent", True)
    assert status == 0


def refresh_that_hangs(flights, key, release, refreshes):
    """Begin a refresh that is late at once, and return when it runs."""
    begun = threading.Event()

    def hang():
        begun.set()
        assert release.wait(PATIENCE_S)
        return "late"

    flights.threads.refresh(key, (hang,), refreshes=refreshes, limit_s=0.0)
    assert begun.wait(PATIENCE_S)


def test_a_key_whose_refresh_hangs_is_refreshed_again(caplog):
    """A late refresh does not count against the limit of refreshes, and its outcome changes nothing."""
    flights = SingleFlight(time.monotonic_ns)
    release, done = threading.Event(), threading.Event()
    refreshes = Refreshes(1)
    refresh_that_hangs(flights, "key", release, refreshes)
    later_ns = time.monotonic_ns() + 10**9
    flights.threads._now = lambda: later_ns
    flights.threads.refresh("key", (done.set,), refreshes=refreshes, limit_s=PATIENCE_S)
    assert done.wait(PATIENCE_S)
    release.set()
    until = time.monotonic() + PATIENCE_S
    while flights.threads._refreshing:
        assert time.monotonic() < until
        os.sched_yield()
    statistics = flights.statistics()
    assert (statistics.refreshes, statistics.refresh_failures, statistics.in_flight) == (2, 1, 0)
    assert refreshes.running == 0
    assert "a refresh in a thread is late" in caplog.text


def test_waiter_of_hanging_refresh_leads_a_new_flight(caplog):
    """A caller that comes during a late refresh leads a new flight, which the thread of the refresh does not end."""
    flights = SingleFlight(time.monotonic_ns)
    release = threading.Event()
    refresh_that_hangs(flights, "key", release, Refreshes())
    assert flights.threads.share("key", (lambda: "own",)) == ("own", True)
    release.set()
    assert flights.statistics().in_flight == 0
