"""The attempts in flight, without a router."""

import pytest

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
    attempts, cancelled = Attempts(), []
    for name, switch_ns in (("a", 20), ("b", 10), ("c", 30), ("d", 20)):
        attempts.enter(Task(name, cancelled), 0, 0, switch_ns, 40)

    next_ns = attempts.interrupt_due(20)

    assert (cancelled, next_ns, attempts.timer_ns) == (["a", "b", "d"], 30, 30)
