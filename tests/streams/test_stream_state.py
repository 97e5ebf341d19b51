"""State of one stream, compared with plain lists under random operations."""

from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streaminfer.streams._stream_cy import StreamState, make_source_failure
from streaminfer.streams.stream_settings import StreamSettings
from streaminfer.telemetry import LatencyHistogram

pytestmark = pytest.mark.uncompiled


class EvenOnly:
    """Selector of frames captured at even instants."""

    def takes(self, captured_ns):
        return captured_ns % 2 == 0


def state_of(
    max_waiting=1, waits=False, selector=None, max_in_flight=1, max_age_ns=0, resets=False, ages=None, alone=False
):
    policy = SimpleNamespace(max_waiting=max_waiting, waits=waits, make_selector=lambda: selector)
    limits = StreamSettings(policy, max_in_flight, max_age_ns, None, resets, 0, None)
    return StreamState("s", limits, resets or alone, ages or LatencyHistogram())


class StreamMachine(RuleBasedStateMachine):
    """Random operations; the expected state is a list of frames in order, each a dictionary with its status."""

    max_waiting, waits, selector, max_in_flight, max_age_ns, resets, alone = 1, False, None, 1, 0, False, False

    def __init__(self):
        super().__init__()
        self.ages = LatencyHistogram()
        self.state = state_of(
            *(self.max_waiting, self.waits, self.selector, self.max_in_flight, self.max_age_ns),
            *(self.resets, self.ages, self.alone),
        )
        self.now_ns = 10
        self.frames = []  # all that arrived, in order
        self.dropped = {}
        self.discontinuities = False
        self.delivered = []

    def of(self, *statuses):
        return [frame for frame in self.frames if frame["status"] in statuses]

    def drop(self, frame, reason):
        frame["status"] = "gone"
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def pass_on(self, frame, was_sent=False):
        if self.resets or (frame["discontinuities"] and not was_sent):  # a sent frame has reset the state already
            waiting = self.of("waiting")
            if waiting:
                waiting[0]["discontinuities"] = True
            else:
                self.discontinuities = True

    @rule(ns=st.integers(0, 20))
    def time_passes(self, ns):
        self.now_ns += ns

    @precondition(lambda self: not self.state.is_full())
    @rule(back_ns=st.integers(-5, 30), discontinuities=st.booleans())
    def frame_arrives(self, back_ns, discontinuities):
        captured_ns = self.now_ns - back_ns
        frame = {
            "number": len(self.frames),
            "captured": min(captured_ns, self.now_ns),
            "discontinuities": discontinuities or self.discontinuities,
        }
        self.frames.append(frame)
        if self.selector is not None and captured_ns % 2:
            self.drop(frame, "skipped")
            self.discontinuities = frame["discontinuities"]
            expected = False
        else:
            frame["status"] = "new"
            self.discontinuities = False
            waiting = self.of("waiting")
            frame["status"] = "waiting"
            if not self.waits and len(waiting) >= self.max_waiting:
                self.drop(waiting[0], "stale")
                self.pass_on(waiting[0])
            expected = True
        assert self.state.offer(frame["number"], captured_ns, None, discontinuities, self.now_ns) is expected

    @rule()
    def frame_is_sent(self):
        expected = None
        while expected is None and self.may_send():
            frame = self.of("waiting")[0]
            if self.max_age_ns and frame["captured"] + self.max_age_ns <= self.now_ns:
                self.drop(frame, "deadline_exceeded")
                self.pass_on(frame)
            else:
                expected = frame
        result = self.state.next(self.now_ns)
        assert (result is None) is (expected is None)
        if expected is not None:
            assert (result.number, result._inputs, result._discontinuity) == (
                expected["number"],
                expected["number"],
                expected["discontinuities"],
            )
            assert self.state.deadline_ns(result) == expected["captured"] + self.max_age_ns
            expected.update(status="running", result=result)

    @precondition(lambda self: self.max_age_ns)
    @rule(ns=st.integers(0, 60))
    def late_frames_are_dropped(self, ns):
        while len(self.of("waiting")) > 1:
            frame = self.of("waiting")[0]
            if frame["captured"] + self.max_age_ns >= self.now_ns + ns:
                break
            is_too_old = frame["captured"] + self.max_age_ns <= self.now_ns
            self.drop(frame, "deadline_exceeded" if is_too_old else "infeasible")
            self.pass_on(frame)
        self.state.drop_late(self.now_ns, self.now_ns + ns)

    def may_send(self):
        waiting, running = self.of("waiting"), self.of("running")
        places = self.max_in_flight + (1 if self.waits else 0)
        return (
            bool(waiting)
            and len(running) < self.max_in_flight
            and len(running) + len(self.of("ready", "error")) < places
            and not (running and (waiting[0]["discontinuities"] or self.resets or self.alone))
        )

    @precondition(lambda self: self.of("running"))
    @rule(data=st.data(), how=st.sampled_from(["complete", "fail", "drop"]))
    def request_ends(self, data, how):
        frame = data.draw(st.sampled_from(self.of("running")))
        result = frame["result"]
        if how == "complete":
            frame["status"] = "ready"
            has_ready = self.state.complete(result, f"y{frame['number']}", False, self.now_ns)
        elif how == "fail":
            frame["status"] = "error"
            has_ready = self.state.fail(result, ValueError(), self.now_ns)
            self.pass_on(frame, was_sent=True)
        else:
            self.drop(frame, "why")
            has_ready = self.state.drop(result, "why")
            self.pass_on(frame, was_sent=True)
        assert has_ready is self.has_ready()
        assert not self.state.complete(result, None, False, self.now_ns)  # a second end counts for nothing

    def has_ready(self):
        sent = self.of("running", "ready", "error")
        return bool(sent) and sent[0]["status"] != "running"

    @rule()
    def consumer_takes(self):
        result = self.state.take(self.now_ns)
        assert (result is not None) is self.has_ready_before
        if result is not None:
            frame = self.of("running", "ready", "error")[0]
            assert result.number == frame["number"]
            assert result.age_s == (self.now_ns - frame["captured"]) / 1e9
            assert (result.error is None) is (frame["status"] == "ready")
            assert result.outputs == (f"y{frame['number']}" if frame["status"] == "ready" else None)
            self.delivered.append(frame)
            frame["status"] = "delivered" if result.error is None else "failed"

    @property
    def has_ready_before(self):
        return self.has_ready()

    @rule(drop_ready=st.booleans())
    def stream_is_closed(self, drop_ready):
        self.state.close(drop_ready)
        for frame in self.of("waiting", "running", *(("ready", "error") if drop_ready else ())):
            self.drop(frame, "closed")

    @invariant()
    def counters_agree(self):
        state = self.state
        assert state.received == len(self.frames)
        assert state.delivered == len(self.of("delivered")) == self.ages.count
        assert state.failed == len(self.of("failed"))
        assert dict(state.dropped) == self.dropped
        assert state.waiting == len(self.of("waiting"))
        assert state.running == len(self.of("running"))
        assert state.in_flight == len(self.of("running", "ready", "error"))
        assert state.received == (
            state.delivered + state.failed + sum(state.dropped.values()) + state.waiting + state.in_flight
        )
        assert state.can_send() is self.may_send()
        assert state.has_ready() is self.has_ready()
        numbers = [frame["number"] for frame in self.delivered]
        assert numbers == sorted(numbers)


class Latest(StreamMachine):
    max_age_ns = 25


class Blocks(StreamMachine):
    max_waiting, waits, max_in_flight = 4, True, 3


class Resets(Blocks):
    resets, max_age_ns = True, 60


class Alone(Blocks):
    alone = True


class Selects(StreamMachine):
    max_waiting, selector, max_in_flight, max_age_ns = 2, EvenOnly(), 2, 40


for machine in (Latest, Blocks, Resets, Alone, Selects):
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestLatest, TestBlocks = Latest.TestCase, Blocks.TestCase
TestResets, TestAlone, TestSelects = Resets.TestCase, Alone.TestCase, Selects.TestCase


def test_held_source_continues_at_a_quarter_full():
    """A held source continues when at most a quarter of the waiting places is taken."""
    state = state_of(4, True, None, 1)
    for number in range(4):
        state.offer(number, 0, None, False, 0)

    assert state.is_full()
    assert not state.has_room()

    for _ in range(3):
        state.complete(state.next(0), None, False, 0)
        state.take(0)
    assert state.has_room()


def test_source_resumes_below_max_in_flight():
    """A held source continues when fewer frames wait than can be in flight.

    Otherwise places in flight would stay empty while the source is held.
    """
    state = state_of(4, True, None, 4)
    for number in range(4):
        state.offer(number, 0, None, False, 0)

    assert not state.has_room()
    state.next(0)
    assert state.has_room()


def test_full_queue_has_no_room():
    """A held source stays held while the queue is full, even if more frames can be in flight than can wait."""
    state = state_of(1, True, None, 4)
    state.offer(0, 0, None, False, 0)

    assert state.is_full()
    assert not state.has_room()
    state.next(0)
    assert state.has_room()


def test_capture_after_arrival_counts_as_arrival():
    """A frame whose capture instant is in the future ages from its arrival."""
    state = state_of(max_age_ns=10)
    state.offer(1, 1_000, None, False, 100)

    result = state.next(105)
    assert state.deadline_ns(result) == 110
    state.complete(result, 1, False, 108)
    assert state.take(109).age_s == 9 / 1e9
    assert result.captured_ns == 1_000


def test_source_failure_is_a_result_without_frame():
    """The failure of a source is a result without a frame, with the error and the id of the stream."""
    error = OSError("unplugged")
    result = make_source_failure("door", error, 7)

    assert result.source_failed
    assert (result.stream_id, result.error, result.number, result.age_s) == ("door", error, -1, 0.0)
    assert "OSError" in repr(result)


@pytest.mark.parametrize(
    ("max_age_ns", "ages_ns", "ends_ns", "lags"),
    [
        (100, [90, 70], 1031, True),
        (100, [90, 70], 1011, True),  # the next frame is too old, and the source holds frames that age
        (100, [90, 70], 1010, False),  # the next frame has time
        (100, [90, 70], 1101, False),  # even a frame captured now would be too old
        (100, [50, 90], 1031, False),  # captured in reverse order: the first frame has time
        (100, [], 1031, False),
        (0, [90, 70], 1031, False),
    ],
)
def test_stream_lags_if_new_frame_would_be_in_time(max_age_ns, ages_ns, ends_ns, lags):
    """A stream lags if its next frame would be too old at the given end and a frame captured now would not."""
    state = state_of(2, True, max_age_ns=max_age_ns)
    for age_ns in ages_ns:
        state.offer(None, 1000 - age_ns, None, False, 1000)
    assert state.lags(1000, ends_ns) is lags


@pytest.mark.parametrize(("ends_ns", "lags"), [(1010, False), (1011, False), (1030, False), (1031, True)])
def test_stream_read_at_capture_lags_if_all_are_late(ends_ns, lags):
    """If frames age only after they are read, a stream lags only if all its waiting frames are too late."""
    state = state_of(2, True, max_age_ns=100)
    for read_ns in (910, 930):
        state.offer(None, read_ns, None, False, read_ns)
    assert state.lags(1000, ends_ns) is lags


@pytest.mark.parametrize(
    ("ages_ns", "max_age_ns", "is_behind"),
    [([20, 13], 100, True), ([20, 12], 100, False), ([20], 100, False), ([], 100, False), ([20, 20], 10**9, False)],
)
def test_full_stream_with_old_frames_is_behind(ages_ns, max_age_ns, is_behind):
    """A stream is behind if it is full, and its last frame had lost over an eighth of its time when it was read."""
    state = state_of(2, True, max_age_ns=max_age_ns)
    for age_ns in ages_ns:
        state.offer(None, 1000 - age_ns, None, False, 1000)
    assert state.is_behind() is is_behind


@pytest.mark.parametrize(
    ("ages_ns", "ends_ns", "left"),
    [
        ([90, 5], 1031, 1),  # as many as can wait: only frames that are too old are dropped
        ([10, 5], 1031, 2),
        ([90, 80, 5], 1031, 1),
        ([50, 40, 5], 1031, 2),  # one too many, none of them too old: the oldest frame is dropped
    ],
)
def test_no_more_frames_wait_than_the_policy_allows(ages_ns, ends_ns, left):
    """A stream that read ahead past old frames drops its oldest frame if more wait than the policy allows."""
    state = state_of(2, True, max_age_ns=100)
    for age_ns in ages_ns:
        state.offer(None, 1000 - age_ns, None, False, 1000)

    assert state.has_too_many() is (len(ages_ns) > 2)
    state.drop_late(1000, ends_ns)
    assert state.waiting == left
    assert not state.has_too_many()
