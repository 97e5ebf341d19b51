"""The breaker in several threads, in both builds: no outcome is lost, probes are limited, calls run concurrently."""

import contextlib
import itertools
import sys
import threading

import pytest

import streaminfer as si
from streaminfer._internal.locking import is_atomic, locked_subclass, public_methods
from streaminfer.resilience import CircuitBreaker
from streaminfer.resilience.breaker import circuit_breaker
from streaminfer.resilience.breaker._outcome_window_cy import OutcomeWindow
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

ATOMIC = is_atomic(circuit_breaker.BreakerMachine, "record")
ROUNDS = 20_000 if ATOMIC else 1_000


@pytest.fixture(autouse=True)
def _switch_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_together(*functions):
    errors = []
    barrier = threading.Barrier(len(functions))

    def guarded(function):
        barrier.wait()
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_no_outcome_is_lost():
    breaker = CircuitBreaker(window=1000, failure_rate_threshold=1.0)
    function = breaker.wrap(lambda fails: 1 / 0 if fails else 1)

    def use():
        for number in range(ROUNDS):
            with contextlib.suppress(ZeroDivisionError):
                function(number % 4 == 0)
            breaker.release(breaker.try_acquire())

    run_together(use, use, use, use)
    seen = breaker.statistics()
    assert (seen.permitted, seen.succeeded, seen.failed, seen.ignored) == (
        8 * ROUNDS,
        3 * ROUNDS,
        ROUNDS,
        4 * ROUNDS,
    )
    assert seen.calls == 1000


@pytest.mark.parametrize("half_open_calls", [1, 3])
def test_half_open_permits_exact_number_of_threads(half_open_calls):
    """Of twenty concurrent threads, half-open permits exactly `half_open_calls`."""
    clock = FakeClock()
    for _ in range(20):
        breaker = CircuitBreaker(clock=clock, minimum_calls=4, half_open_calls=half_open_calls)
        for _ in range(4):
            breaker.record(False, 0.0)
        clock.advance(5.0)
        permits = []
        run_together(*[lambda breaker=breaker, permits=permits: permits.append(breaker.try_acquire())] * 20)
        assert len(set(permits) - {0}) == half_open_calls
        assert permits.count(0) == 20 - half_open_calls


def test_eight_threads_are_inside_at_once():
    breaker = CircuitBreaker()
    inside = threading.Barrier(8)

    @breaker
    def call():
        inside.wait(timeout=60)  # passes only when all eight are in the call

    run_together(*[call] * 8)
    assert breaker.statistics().succeeded == 8


def test_concurrent_threads_account_for_every_permit():
    """While threads change the state, every permit is accounted for."""
    # each reading advances this clock by 10 µs, so the number of state changes depends on the calls, and not on the
    # share of a core that the threads get
    instants = itertools.count(0, 10_000)
    breaker = CircuitBreaker(
        minimum_calls=2,
        window=4,
        open_s=1e-4,
        max_open_s=1e-4,
        half_open_calls=2,
        half_open_s=3600.0,
        clock=lambda: next(instants),
    )
    heard = []
    breaker.listen(heard.append)

    def use(seed):
        for number in range(ROUNDS // 4):
            permit = breaker.try_acquire()
            if permit:
                kind = (number + seed) % 3
                if kind == 2:
                    breaker.release(permit)
                else:
                    breaker.record(bool(kind), 0.0, permit)

    run_together(*[lambda seed=seed: use(seed) for seed in range(6)])
    seen = breaker.statistics()
    assert seen.permitted == seen.succeeded + seen.failed + seen.ignored + seen.stale_permits
    assert seen.permitted + seen.rejected == 6 * (ROUNDS // 4)
    assert seen.half_open_in_flight == 0
    # the listener gets all events in order, except those that came too fast for the delivering thread
    assert 0 <= seen.trips - sum(event.after == "open" for event in heard) <= seen.events_lost
    gaps = sum(before.after != after.before for before, after in itertools.pairwise(heard))
    assert gaps <= seen.events_lost
    assert len(heard) + seen.events_lost > 10  # the scheduler decides how many are lost


def test_hanging_listener_blocks_no_other_thread():
    """A listener that hangs blocks no other thread."""
    breaker = CircuitBreaker(minimum_calls=1)
    entered, leave = threading.Event(), threading.Event()
    told = []

    def listener(event):
        told.append(event.reason)
        if len(told) == 1:
            entered.set()
            assert leave.wait(timeout=60)

    breaker.listen(listener)

    def others():
        assert entered.wait(timeout=60)
        for _ in range(100):
            breaker.force_open()
            breaker.reset()
        with breaker.guard():
            pass
        leave.set()

    run_together(lambda: breaker.record(False, 0.0), others)
    assert told[0] == "failure_rate"
    assert told[-2:] == ["forced_open", "reset"], "those who came meanwhile left theirs to the one that tells"
    assert breaker.statistics().events_lost == 200 - (len(told) - 1) > 0


class CountedLock:
    def __init__(self):
        self.held = 0
        self.lock = threading.RLock()

    def __enter__(self):
        self.lock.acquire()
        self.held += 1

    def __exit__(self, *exception):
        self.lock.release()


@pytest.mark.parametrize("operation", public_methods(circuit_breaker.BreakerMachine))
def test_every_nonatomic_operation_holds_the_lock(operation):
    """If the code is not atomic, every operation of the machine holds the lock."""
    machine = locked_subclass(circuit_breaker.BreakerMachine, public_methods(circuit_breaker.BreakerMachine))(
        0.5, 1.0, 10, OutcomeWindow(4, 0), 2, 9, 9, 1, 9, 0, 0
    )
    machine._lock = CountedLock()
    arguments = {
        "record": (True, 1, 0, 1),
        "cut_off": (1, 0, 1),
        "release": (0, 1),
        "set_mode": (0, 1),
        "next_event": (),
    }.get(operation, (1,))
    getattr(machine, operation)(*arguments)
    assert machine._lock.held >= 1


def test_lock_exists_in_plain_and_free_threaded_builds(monkeypatch, plain):
    """Plain Python builds, and compiled ones without a GIL, lock the state machine."""
    assert hasattr(CircuitBreaker()._machine, "_lock") is not ATOMIC
    assert not is_atomic(plain("resilience.breaker._state_machine_cy").BreakerMachine, "record")
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert not is_atomic(circuit_breaker.BreakerMachine, "record")


def test_compiled_callers_use_lock_of_guarded_machine(monkeypatch):
    """Compiled callers use the lock of a guarded machine."""
    monkeypatch.setattr(
        circuit_breaker,
        "_Machine",
        locked_subclass(circuit_breaker.BreakerMachine, public_methods(circuit_breaker.BreakerMachine)),
    )
    breaker = CircuitBreaker()
    lock = breaker._machine._lock = CountedLock()
    breaker.wrap(lambda: None)()
    assert lock.held == 2
    with breaker.guard():
        pass
    assert lock.held == 4
    breaker.force_open()
    with pytest.raises(si.CircuitOpen), breaker.guard():
        pass
    assert lock.held >= 7
