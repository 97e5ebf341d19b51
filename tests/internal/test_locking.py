"""Locks around the methods of state machines that are not compiled."""

import sys
import threading

import pytest

from streaminfer._internal.locking import is_atomic, locked_subclass, thread_safe
from streaminfer.resilience._call_budget_cy import CallBudget

pytestmark = pytest.mark.uncompiled


class Counter:
    __slots__ = ("seen", "value")

    def __init__(self, value, *, step=1):
        self.value = value + step
        self.seen = []

    def add(self, amount):
        self.value += amount
        return self.value

    def add_twice(self, amount):
        self.add(amount)
        return self.add(amount)

    def read(self):
        return self.value


def test_arguments_and_results_pass_through():
    counter = locked_subclass(Counter, ("add",))(1, step=2)

    assert counter.add(4) == counter.value == 7


def test_an_operation_holds_the_lock_and_others_do_not():
    counter = locked_subclass(Counter, ("add",))(0)
    ended = threading.Event()

    with counter._lock:
        assert counter.read() == 1
        thread = threading.Thread(target=lambda: (counter.add(1), ended.set()))
        thread.start()
        assert not ended.is_set()
    thread.join()

    assert counter.value == 2


def test_names_that_the_class_lacks_are_left_out():
    assert not hasattr(locked_subclass(Counter, ("add", "absent")), "absent")


def test_after_runs_unlocked_after_outermost_operation():
    """`after` runs one time, when the outermost operation has ended and the lock is free."""

    def after(counter):
        counter.seen.append((counter.value, counter._depth))

    counter = locked_subclass(Counter, ("add", "add_twice", "read"), after=after, not_after=("read",))(0)
    counter.add_twice(1)
    counter.read()

    assert counter.seen == [(3, 0)]


def test_after_runs_when_an_operation_fails():
    counter = locked_subclass(Counter, ("add",), after=lambda it: it.seen.append("after"))(0)

    with pytest.raises(TypeError):
        counter.add("one")

    assert counter.seen == ["after"]


def test_atomic_compiled_methods_need_no_lock(monkeypatch):
    """Compiled methods need no lock while the global interpreter lock makes them atomic."""
    assert not is_atomic(Counter, "add")
    assert thread_safe(Counter, ["add"]).__name__ == "LockedCounter"
    atomic = is_atomic(CallBudget, "grant")
    assert (thread_safe(CallBudget, ("grant",)) is CallBudget) is atomic

    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)

    assert not is_atomic(CallBudget, "grant")
