"""Settings, statistics and events of the breaker."""

import gc
import logging
import weakref

import pytest

import streaminfer as si
from streaminfer import resilience
from streaminfer.resilience import BreakerEvent, CircuitBreaker
from streaminfer.resilience.breaker.events import BreakerEvents
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

WRONG = [
    ("failure_rate_threshold", 0.0, ValueError),
    ("failure_rate_threshold", 1.1, ValueError),
    ("failure_rate_threshold", float("nan"), ValueError),
    ("failure_rate_threshold", True, TypeError),
    ("failure_rate_threshold", "0.5", TypeError),
    ("slow_rate_threshold", -1, ValueError),
    ("slow_call_s", 0.0, ValueError),
    ("slow_call_s", "1", TypeError),
    ("window", 0, ValueError),
    ("window", 10.0, TypeError),
    ("window", True, TypeError),
    ("window", None, TypeError),
    ("window", "10", ValueError),
    ("window", "0s", ValueError),
    ("window", "2h", ValueError),
    ("window", "3601s", ValueError),
    ("minimum_calls", 0, ValueError),
    ("minimum_calls", 1.5, TypeError),
    ("open_s", 0, ValueError),
    ("open_s", float("inf"), ValueError),
    ("max_open_s", -1.0, ValueError),
    ("half_open_calls", 0, ValueError),
    ("half_open_calls", 1025, ValueError),
    ("half_open_s", 0.0, ValueError),
    ("ignore", 3, TypeError),
    ("ignore", int, TypeError),
    ("ignore", [ValueError, "OSError"], TypeError),
    ("failure_result", 500, TypeError),
    ("ignore_result", 404, TypeError),
    ("name", None, TypeError),
    ("seed", -1, ValueError),
    ("seed", 0.5, TypeError),
    ("clock", 3, TypeError),
]


@pytest.mark.parametrize(("name", "value", "kind"), WRONG)
def test_a_wrong_argument_is_named(name, value, kind):
    with pytest.raises(kind, match=f"^{name}: expected "):
        CircuitBreaker(**{name: value})


def test_arguments_are_keywords():
    with pytest.raises(TypeError):
        CircuitBreaker(0.5)


@pytest.mark.parametrize("duration_s", [-1.0, float("nan"), float("inf")])
def test_a_wrong_duration_is_not_recorded(duration_s):
    breaker = CircuitBreaker()
    with pytest.raises(ValueError, match=r"^duration_s: expected "):
        breaker.record(True, duration_s)
    with pytest.raises(TypeError, match=r"^duration_s: expected "):
        breaker.record(True, "1")
    breaker.record(1, 3)
    breaker.record(0, 1e300)
    seen = breaker.statistics()
    assert (seen.succeeded, seen.failed) == (1, 1)


def test_window_of_time_expires_outcomes():
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock, window="10s", minimum_calls=4)
    for _ in range(3):
        breaker.record(False, 0.0)
    clock.advance(9.9)
    assert breaker.statistics().calls == 3
    clock.advance(0.2)
    assert breaker.statistics().calls == 0
    breaker.record(False, 0.0)
    assert breaker.state == "closed"
    for _ in range(3):
        breaker.record(False, 0.0)
    assert breaker.state == "open"


@pytest.mark.parametrize(("window", "covers_s"), [("0.5s", 0.5), (" 2 s ", 2.0), ("3600s", 3600.0)])
def test_windows_of_time(window, covers_s):
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock, window=window)
    breaker.record(True, 0.0)
    clock.advance(0.89 * covers_s)
    assert breaker.statistics().calls == 1
    clock.advance(0.12 * covers_s)
    assert breaker.statistics().calls == 0


def test_jitter_only_shortens_the_open_time():
    """Jitter only shortens the open time, by at most 10 %, and differs between breakers."""

    def waits(**settings):
        clock = FakeClock()
        breaker = CircuitBreaker(clock=clock, minimum_calls=1, open_s=10.0, max_open_s=40.0, **settings)
        breaker.record(False, 0.0)
        waited = []
        for _ in range(4):
            waited.append(breaker.retry_after_s)
            clock.now_ns += round(waited[-1] * 1e9)
            breaker.record(False, 0.0, breaker.try_acquire())
        return waited

    many = [waits(seed=seed) for seed in range(0, 2**31, 2**24)]
    for waited in many:
        for base_s, wait_s in zip((10.0, 20.0, 40.0, 40.0), waited, strict=True):
            assert 0.9 * base_s <= wait_s <= base_s
    first = [waited[0] for waited in many]
    assert min(first) < 9.1
    assert max(first) > 9.9
    assert waits(seed=5) == waits(seed=5) != waits(seed=6)
    assert len({waits()[0] for _ in range(8)}) > 1


def test_the_open_time_is_never_below_open_s():
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock, open_s=1000.0, minimum_calls=1)
    breaker.record(False, 0.0)
    assert 900.0 <= breaker.retry_after_s <= 1000.0


def test_statistics_show_themselves():
    breaker = CircuitBreaker(name="<faces>", clock=FakeClock())
    assert repr(breaker) == "<CircuitBreaker('<faces>', closed)>"
    assert "<tr><th>failure rate</th><td>–</td></tr>" in breaker._repr_html_()
    assert breaker.statistics().failure_rate != breaker.statistics().failure_rate  # NaN
    breaker.record(False, 0.0)
    html = breaker.statistics()._repr_html_()
    assert "&lt;faces&gt;" in html
    assert "<tr><th>failure rate</th><td>100.0%</td></tr>" in html
    breaker.disable()
    assert repr(breaker) == "<CircuitBreaker('<faces>', closed, disabled)>"
    assert "<tr><th>mode</th><td>disabled</td></tr>" in breaker._repr_html_()
    with pytest.raises(AttributeError):
        breaker.statistics().calls = 5


def test_events_contain_the_counts():
    clock = FakeClock(7)
    breaker = CircuitBreaker(name="faces", clock=clock, minimum_calls=2, slow_call_s=1.0)
    heard = []
    stop = breaker.listen(heard.append)
    breaker.record(True, 2.0)
    breaker.record(False, 0.0)
    assert heard == [BreakerEvent("faces", "closed", "open", "failure_rate", 7, 2, 1, 1)]
    stop()
    stop()
    breaker.reset()
    assert len(heard) == 1
    with pytest.raises(TypeError, match="listener: expected"):
        breaker.listen(None)


def test_failing_listener_is_logged_without_effect(caplog):
    """A listener that fails is logged and changes neither the breaker nor other listeners."""
    breaker = CircuitBreaker(minimum_calls=1)
    heard = []

    def broken(event):
        raise ValueError("broken listener")

    breaker.listen(broken)
    breaker.listen(heard.append)
    with caplog.at_level(logging.ERROR):
        breaker.record(False, 0.0)
    assert (breaker.state, len(heard)) == ("open", 1)
    assert "broken listener" in caplog.text


def test_a_listener_may_use_the_breaker():
    breaker = CircuitBreaker(minimum_calls=1)
    heard = []

    def listener(event):
        heard.append(event.reason)
        if event.reason == "failure_rate":
            breaker.reset()
            assert heard == ["failure_rate"]  # its own change comes after its return
            with breaker.guard():
                pass

    breaker.listen(listener)
    breaker.record(False, 0.0)
    assert heard == ["failure_rate", "reset"]
    assert breaker.state == "closed"


def test_interrupt_of_listener_leaves_breaker_usable():
    """An interrupt that a listener raises leaves the breaker usable and the permit of the call free."""
    clock = FakeClock()
    breaker = CircuitBreaker(clock=clock, minimum_calls=1, half_open_calls=1)
    breaker.record(False, 0.0)
    heard = []

    def listener(event):
        heard.append(event.reason)
        if len(heard) == 1:
            raise KeyboardInterrupt

    breaker.listen(listener)
    clock.advance(5.0)
    called = []
    with pytest.raises(KeyboardInterrupt):
        breaker.wrap(called.append)(1)
    assert called == []
    assert breaker.permits(), "the permit of the call that was not made is free"
    breaker.wrap(called.append)(2)
    assert heard == ["open_time_passed", "probes_succeeded"]


def test_event_added_after_last_check_is_delivered():
    """An event that is left to the delivering thread is delivered, even if it comes after that thread's last check."""

    class Machine:
        """Machine that gets an event of another thread after a check has found none."""

        pending, looks = 1, 0
        listening = False

        @property
        def transitions(self):
            return self

        def next_event(self):
            self.looks += 1
            if self.looks == 2:
                return None
            self.pending = int(self.looks == 1)
            return None if self.looks > 3 else (0, 1, 0, self.looks, 0, 0, 0)

    heard = []
    events = BreakerEvents("", Machine())
    events.listen(heard.append)
    events.deliver()
    assert [event.at_ns for event in heard] == [1, 3]


def test_events_without_listeners_are_not_stored():
    breaker = CircuitBreaker(minimum_calls=1)
    for _ in range(100):
        breaker.record(False, 0.0)
        breaker.reset()
    heard = []
    breaker.listen(heard.append)
    breaker.reset()
    assert [event.reason for event in heard] == ["reset"]
    assert breaker.statistics().events_lost == 0


def test_breaker_and_guarded_object_are_freed():
    class Thing:
        def __call__(self):
            return 1

    thing = Thing()
    breaker = CircuitBreaker()
    breaker.listen(print)
    guarded = breaker.wrap(thing)
    assert guarded() == 1
    guard = breaker.guard()
    alive = [weakref.ref(breaker), weakref.ref(thing), weakref.ref(guarded)]
    del breaker, thing, guarded, guard
    gc.collect()
    assert [reference() for reference in alive] == [None] * 3


def test_an_abandoned_generator_gives_its_permit_back():
    breaker = CircuitBreaker(clock=FakeClock())

    def frames():
        with breaker.guard():
            yield 1

    generator = frames()
    next(generator)
    del generator
    gc.collect()
    assert breaker.statistics().ignored == 1


def test_the_package_loads_lazily():
    assert set(resilience.__all__) <= set(dir(resilience))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        resilience.Nothing  # noqa: B018
    assert issubclass(si.CircuitOpen, si.StreamInferError)


def test_events_caused_by_a_listener_come_to_an_end():
    """A listener whose calls cause further events is called a bounded number of times."""
    breaker = CircuitBreaker(minimum_calls=1, window=1, clock=FakeClock())
    heard = []

    def reset(event):
        heard.append(event)
        breaker.reset()
        breaker.force_open()

    breaker.listen(reset)
    breaker.force_open()
    assert 1 < len(heard) < 1000
