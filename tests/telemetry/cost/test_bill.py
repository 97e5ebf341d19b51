"""The bill of a device and the shares of a batch add up exactly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streaminfer._runtime.batch_observer import BatchWork
from streaminfer.telemetry.cost._bill_cy import DeviceBill, split_ns

pytestmark = pytest.mark.uncompiled


class AgainstTime(RuleBasedStateMachine):
    """Random operations on a bill: each nanosecond in which it is open or a batch runs is in exactly one account."""

    def __init__(self):
        super().__init__()
        self.bill = DeviceBill(3)
        self.now_ns = 10**15
        self.paid_ns = self.charged_ns = self.openings = 0
        self.running = []

    def later(self, passed):
        self.now_ns += passed
        if self.openings or self.running:
            self.paid_ns += max(passed, 0)
        return self.now_ns

    @rule()
    def open(self):
        self.bill.open(self.now_ns)
        self.openings += 1

    @rule(passed=st.integers(0, 10**6))
    def close(self, passed):
        self.bill.close(self.later(passed))
        self.openings = max(self.openings - 1, 0)

    @rule(passed=st.integers(0, 10**6))
    def begin(self, passed):
        now_ns = self.later(passed)
        self.running.append(self.bill.begin(now_ns))

    @precondition(lambda self: self.running)
    @rule(passed=st.integers(0, 10**6), which=st.integers(0, 99))
    def end(self, passed, which):
        now_ns = self.later(passed)
        charge_ns = self.bill.end(self.running.pop(which % len(self.running)), now_ns)
        assert charge_ns >= 0
        self.charged_ns += charge_ns
        self.bill.pad(charge_ns // 3)

    @rule(passed=st.integers(0, 10**6))
    def look(self, passed):
        self.bill.advance(self.later(passed))
        assert self.bill.bill_ns == self.paid_ns

    @invariant()
    def adds_up(self):
        bill_ns, finished_ns, running_ns, padding_ns, idle_ns = self.bill.read(self.now_ns)
        assert finished_ns + running_ns + padding_ns + idle_ns == bill_ns == self.paid_ns
        assert finished_ns + padding_ns == self.charged_ns
        assert self.bill.in_flight == len(self.running)
        assert running_ns >= 0


TestAgainstTime = AgainstTime.TestCase

weights = st.floats(0.0, 1e9)


@given(
    charge_ns=st.integers(0, 10**13),
    rows=st.integers(1, 70),
    setup=st.floats(0.0, 1.0),
    padding=st.floats(0.0, 1e9),
    data=st.data(),
)
def test_shares_add_up_to_the_charge(charge_ns, rows, setup, padding, data):
    given_weights = data.draw(st.none() | st.lists(weights, min_size=rows, max_size=rows))

    shares, padding_ns, setup_ns = split_ns(charge_ns, rows, BatchWork(setup, given_weights, padding))

    assert sum(shares) + padding_ns == charge_ns
    assert len(shares) == rows
    assert min(shares) >= 0
    assert padding_ns >= 0
    assert 0 <= setup_ns <= charge_ns


def test_set_up_is_shared_equally_and_the_rest_by_work():
    shares, padding_ns, setup_ns = split_ns(1000, 2, BatchWork(0.4, [1.0, 2.0], 3.0))
    assert (shares, padding_ns, setup_ns) == ([200 + 100, 200 + 200], 300, 400)


def test_equal_rows_differ_by_a_nanosecond_at_most():
    assert split_ns(11, 4, BatchWork())[0] == [3, 3, 3, 2]


def test_concurrent_batches_split_the_time():
    """While two batches run, each is charged half of the time."""
    bill = DeviceBill(1)
    bill.open(0)
    first = bill.begin(0)
    second = bill.begin(100)
    assert bill.end(first, 300) == 100 + 100
    assert bill.end(second, 400) == 100 + 100
    bill.advance(500)
    assert (bill.bill_ns, bill.finished_ns, bill.idle_ns) == (500, 400, 100)


def test_a_free_worker_is_idle():
    bill = DeviceBill(4)
    begun = bill.begin(0)
    assert bill.end(begun, 100) == 25
    assert (bill.bill_ns, bill.idle_ns) == (100, 75)


def test_batches_drained_by_a_stop_are_charged():
    bill = DeviceBill(1)
    bill.open(0)
    first = bill.begin(10)
    bill.close(20)
    second = bill.begin(30)
    assert bill.end(first, 40) + bill.end(second, 50) == 40
    bill.advance(1000)
    assert (bill.bill_ns, bill.idle_ns) == (50, 10)


def test_nothing_is_charged_while_the_bill_is_closed():
    bill = DeviceBill(1)
    bill.open(0)
    bill.close(10)
    bill.advance(1000)
    bill.close(1000)
    bill.open(2000)
    bill.advance(2005)
    bill.advance(1900)  # a clock that jumps back
    assert bill.bill_ns == bill.idle_ns == 15


def test_clock_replaced_while_closed_bills_nothing():
    """A clock that is replaced while the bill is closed bills nothing; the bill continues with the new clock."""
    bill = DeviceBill(1)
    bill.advance(10**15)
    bill.open(0)
    bill.advance(7)
    bill.close(10)
    bill.advance(10**15)
    assert bill.bill_ns == bill.idle_ns == 10
