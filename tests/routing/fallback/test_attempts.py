"""The attempts in flight, without a router."""

import pytest

from streaminfer._internal.units import NEVER_NS
from streaminfer.routing.fallback._attempts_cy import Attempts

pytestmark = pytest.mark.uncompiled


class Task:
    def __init__(self, name, cancelled):
        self.name = name
        self.cancelled = cancelled

    def cancel(self):
        self.cancelled.append(self.name)


def test_attempts_are_interrupted_in_order_of_start():
    """Attempts that are due together are interrupted in the order of their start, as frames of one stream need it."""
    attempts, cancelled = Attempts(False), []
    for name, switch_ns in (("a", 20), ("b", 10), ("c", 30), ("d", 20)):
        attempts.enter(Task(name, cancelled), 0, 0, switch_ns, 40, None, None)

    next_ns = attempts.interrupt_due(20)

    assert (cancelled, next_ns, attempts.timer_ns) == (["a", "b", "d"], 30, 30)


@pytest.mark.parametrize(
    ("end_ns", "default", "next_ns"),
    [
        pytest.param(60, False, 71, id="in time: a quarter more"),
        pytest.param(96, False, 100, id="just in time: until the deadline"),
        pytest.param(101, False, NEVER_NS, id="late"),
        pytest.param(60, True, NEVER_NS, id="no time left for the default"),
        pytest.param(None, False, NEVER_NS, id="queued"),
    ],
)
def test_attempt_whose_batch_is_in_time_is_extended(end_ns, default, next_ns):
    """An attempt that is due is not interrupted while its batch runs and is expected to be in time."""
    attempts, cancelled = Attempts(default), []
    asked = []

    def batch_end_ns(request, now_ns):
        asked.append((request, now_ns))
        return end_ns

    attempts.enter(Task("a", cancelled), 0, 0, 20, 100, "request", batch_end_ns)

    assert attempts.interrupt_due(20) == next_ns
    assert asked == [("request", 20)]
    assert cancelled == ([] if next_ns != NEVER_NS else ["a"])


def test_error_in_batch_end_interrupts_the_attempt():
    """If a service raises instead of telling the end of a batch, the attempt is interrupted, and others too."""
    attempts, cancelled = Attempts(False), []

    def fail(request, now_ns):
        raise KeyError(request)

    for name, batch_end_ns in (("a", fail), ("b", None)):
        attempts.enter(Task(name, cancelled), 0, 0, 20, 100, "request", batch_end_ns)

    attempts.interrupt_due(20)

    assert cancelled == ["a", "b"]
