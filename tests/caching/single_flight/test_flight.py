"""The single-flight state machine against a model of the outcomes that callers must get."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streaminfer.caching.single_flight._flight_cy import MAX_ATTEMPTS, PAUSE_NS, FlightCounts, FlightTable, Refreshes
from streaminfer.errors import DeadlineExceeded, InvalidInput

pytestmark = pytest.mark.uncompiled

KEYS = ("a", "b")
ERRORS = (ValueError("broken"), DeadlineExceeded("late"), InvalidInput("wrong"))


class Caller:
    def __init__(self, key):
        self.key = key
        self.gone = False  # its future is done, and it has not left yet
        self.flight = None


class SingleFlight(RuleBasedStateMachine):
    """Callers that join, get an outcome and leave, attempts that succeed or fail, and refreshes, in any order."""

    def __init__(self):
        super().__init__()
        self.table = FlightTable(FlightCounts(), lambda caller: not caller.gone)
        self.refreshes = Refreshes()
        self.now_ns = 0
        self.waiting = {key: [] for key in KEYS}  # callers without an outcome, in order
        self.computing = {}  # key → the flight whose attempt runs
        self.leader = dict.fromkeys(KEYS)
        self.failures = dict.fromkeys(KEYS, 0)
        self.refreshing = dict.fromkeys(KEYS, False)
        self.paused_ns = {}

    def over(self, key):
        self.waiting[key] = []
        self.leader[key] = None
        self.failures[key] = 0
        self.refreshing[key] = False
        del self.computing[key]

    @rule(key=st.sampled_from(KEYS))
    def join(self, key):
        caller = Caller(key)
        caller.flight = self.table.join(key, caller, None)
        leads = caller.flight.leader is caller
        assert leads == (key not in self.computing)
        assert caller in caller.flight.waiting
        if leads:
            self.computing[key] = caller.flight
            self.leader[key] = caller
        assert caller.flight is self.computing[key]
        self.waiting[key].append(caller)

    @rule(key=st.sampled_from(KEYS), step_ns=st.integers(0, PAUSE_NS * 6 // 10))
    def refresh(self, key, step_ns):
        self.now_ns += step_ns
        flight = self.table.refresh(key, self.now_ns, self.refreshes)
        may = key not in self.computing and self.paused_ns.get(key, 0) <= self.now_ns
        assert (flight is not None) == may
        if flight is not None:
            assert flight.refreshes is not None
            self.computing[key] = flight
            self.refreshing[key] = True

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def falls_silent(self, data):
        data.draw(st.sampled_from([caller for key in KEYS for caller in self.waiting[key]])).gone = True

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def leave(self, data):
        caller = data.draw(st.sampled_from([caller for key in KEYS for caller in self.waiting[key]]))
        key = caller.key
        self.waiting[key].remove(caller)
        if self.leader[key] is caller:
            self.leader[key] = None
        last = not self.waiting[key] and not self.refreshing[key]
        assert self.table.leave(caller.flight, caller, None) == last
        assert caller.flight.over == last
        if last:
            self.over(key)

    @precondition(lambda self: self.computing)
    @rule(data=st.data())
    def succeed(self, data):
        key = data.draw(st.sampled_from(sorted(self.computing)))
        flight = self.computing[key]
        assert self.table.succeed(flight) == self.waiting[key]
        left = self.waiting[key]
        self.over(key)
        self.told(flight, left)

    @precondition(lambda self: self.computing)
    @rule(data=st.data(), error=st.sampled_from(ERRORS), stops=st.booleans())
    def fail(self, data, error, stops):
        counts, final = not isinstance(error, DeadlineExceeded), stops or isinstance(error, InvalidInput)
        key = data.draw(st.sampled_from(sorted(self.computing)))
        flight = self.computing[key]
        if self.refreshing[key]:
            self.paused_ns[key] = flight.begun_ns + PAUSE_NS
        refreshed, failing = self.refreshing[key], self.refreshes.failing
        self.failures[key] += counts
        owed = [self.leader[key]] if self.leader[key] is not None else []
        rest = [caller for caller in self.waiting[key] if caller not in owed]
        able = [caller for caller in rest if not caller.gone]
        told, leader, is_news = self.table.fail(flight, error, final=stops)
        assert is_news == (refreshed and not failing)
        if final or self.failures[key] >= MAX_ATTEMPTS or not able:
            assert leader is None
            assert told == owed + rest
            self.over(key)
        else:
            assert leader is able[-1 if len(rest) > MAX_ATTEMPTS else 0]
            assert told == owed
            self.leader[key] = leader
            self.waiting[key] = rest
            self.refreshing[key] = False  # then the flight is the waiters' alone
        self.told(flight, told)

    def told(self, flight, callers):
        """Check that callers with an outcome can leave without effect, and that none gets a second outcome."""
        for caller in callers:
            assert not self.table.leave(flight, caller, None)
        if flight.over:
            assert self.table.succeed(flight) == []
            assert self.table.fail(flight, ERRORS[0]) == ([], None, False)

    @invariant()
    def table_holds_what_flies(self):
        assert len(self.table) == len(self.computing)
        assert self.refreshes.running == sum(self.refreshing.values())
        for key, flight in self.computing.items():
            assert list(flight.waiting) == self.waiting[key]
            assert flight.leader is self.leader[key]
            assert not flight.over


SingleFlight.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestFlights = SingleFlight.TestCase


def test_computation_that_waits_for_itself_is_an_error():
    table = FlightTable(FlightCounts(), lambda _: True)
    flight = table.join("a", "first", None)
    assert flight.leader == "first"
    with pytest.raises(RuntimeError, match="re-entrant"):
        table.join("a", "second", flight)
    assert list(flight.waiting) == ["first"]


def test_cycle_of_waiting_computations_is_an_error():
    """A computation cannot wait for a computation that waits for it, directly or through others."""
    table = FlightTable(FlightCounts(), lambda _: True)
    a = table.join("a", 1, None)
    b = table.join("b", 2, a)
    assert b.leader == 2
    c = table.join("c", 3, b)
    for key in "abc":
        with pytest.raises(RuntimeError, match="re-entrant"):
            table.join(key, 4, c)
    # the end of the wait is the end of the cycle
    table.leave(c, 3, b)
    assert c.over
    fresh = table.join("c", 5, None)
    assert fresh.leader == 5
    assert table.join("b", 6, fresh) is b
    with pytest.raises(RuntimeError, match="re-entrant"):
        table.join("c", 7, b)


def test_two_waits_for_one_key_are_counted_separately():
    """The end of one of two waits of a computation for one key leaves the other one in the graph."""
    table = FlightTable(FlightCounts(), lambda _: True)
    a = table.join("a", 1, None)
    b = table.join("b", 2, a)
    table.join("b", 3, a)
    table.leave(b, 2, a)
    with pytest.raises(RuntimeError, match="re-entrant"):
        table.join("a", 4, b)
    table.leave(b, 3, a)
    assert a.waits_for == {}


def test_refreshes_are_bounded():
    """At most 256 keys of one wrapped function are in a refresh or paused; another function has a limit of its own."""
    table = FlightTable(FlightCounts(), lambda _: True)
    refreshes = Refreshes()
    begun = [flight for key in range(5000) if (flight := table.refresh(key, 0, refreshes)) is not None]
    assert len(begun) == refreshes.running == 256
    for flight in begun:
        table.fail(flight, ERRORS[0])
    assert refreshes.running == 0
    assert refreshes.failing
    assert all(table.refresh(key, PAUSE_NS - 1, refreshes) is None for key in range(5000))
    assert table.refresh("other", PAUSE_NS - 1, Refreshes()) is not None
    assert table.succeed(table.refresh(4999, PAUSE_NS, refreshes)) == []
    assert not refreshes.failing


def test_long_refresh_is_followed_by_another_at_once():
    """A refresh that took as long as a pause is followed by the next one at once.

    The pause counts from the start of the refresh, so a refresh that hung has used it up.
    """
    table = FlightTable(FlightCounts(), lambda _: True)
    refreshes = Refreshes()
    table.fail(table.refresh("a", 0, refreshes), ERRORS[0])
    assert table.refresh("a", PAUSE_NS, refreshes) is not None


def test_flights_end_when_the_table_forgets_them():
    table = FlightTable(FlightCounts(), lambda _: True)
    flight = table.join("a", 1, None)
    table.forget()
    assert table.succeed(flight) == []
    assert not table.leave(flight, 1, None)
    assert table.join("a", 2, None).leader == 2


def test_caller_that_is_leaving_does_not_lead():
    """A caller that has its outcome or was cancelled, but has not left yet, does not become the leader."""
    table = FlightTable(FlightCounts(), lambda caller: caller != "gone")
    flight = table.join("a", "first", None)
    for caller in ("gone", "second"):
        table.join("a", caller, None)
    assert table.fail(flight, ERRORS[0]) == (["first"], "second", False)
    assert flight.failures == 1
    assert table.fail(flight, ERRORS[1], final=True) == (["second", "gone"], None, False)
    assert flight.leader is None
    assert flight.waiting == {}


def test_failure_with_a_leader_pauses_no_refresh():
    """The failure of a flight that a caller led does not delay the next refresh of its key."""
    table = FlightTable(FlightCounts(), lambda _: True)
    plain = table.join("a", 1, None)
    table.join("a", 2, None)
    table.leave(plain, 1, None)
    table.fail(plain, ERRORS[0], final=True)
    assert table.refresh("a", 1, Refreshes()) is not None
    table.join("b", 1, None)
    table.fail(table.join("b", 2, None), ERRORS[0], final=True)
    assert table.refresh("b", 1, Refreshes()) is not None
