"""`Preemption`: the models in the foreground and background of a device, and the pauses of the foreground."""

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.device.claim import Claim
from streaminfer.batching.device.preemption import MOST_PACE, Preemption
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.batching.queue._ticket_cy import NEVER
from streaminfer.protocols import BackgroundRuns

MS = 1_000_000


@attrs.define(eq=False)
class Member:
    """Model of a device, with its claim; records when it is moved to or from the background, and raised."""

    source: str
    claim: Claim
    queue: RequestQueue
    told: list = attrs.field(factory=list)
    raised: list = attrs.field(factory=list)


def member(slo_ns, *, name="model", obstacle=None, durations=lambda size: MS, full_at=4):
    """Return a model whose batches can be lowered unless there is an obstacle."""
    queue, told, raised = RequestQueue(100), [], []
    runs = BackgroundRuns(told.append, lambda: raised.append(len(told)), lambda: obstacle or "")
    runs = None if obstacle == "none" else runs
    claim = Claim(queue, durations, runs)
    claim.change(slo_ns, full_at)
    return Member(name, claim, queue, told, raised)


def enter(*members):
    preemption = Preemption()
    for each in members:
        preemption.enter(each)
    return preemption


def end_background(preemption, *, queued_ns=0, started_ns=None, ended_ns, limit_ns, is_promoted=False):
    """Report the end of a background batch of one request."""
    queue = RequestQueue(4)
    queue.admit(None, None, None, queued_ns, limit_ns, queued_ns)
    execution = queue.take(list(queue), queued_ns if started_ns is None else started_ns, "full")
    preemption.end_background(execution, ended_ns, is_promoted=is_promoted)


class TestLevels:
    def test_the_tightest_objective_is_in_the_foreground(self):
        tight, loose, none = member(25 * MS), member(100 * MS), member(None)

        preemption = enter(loose, none, tight)

        assert [preemption.is_background(it) for it in (tight, loose, none)] == [False, True, True]
        assert [it.told for it in (tight, loose, none)] == [[], [True], [True]]

    def test_equal_objectives_share_the_foreground(self):
        one, other = member(25 * MS), member(25 * MS)

        preemption = enter(one, other)

        assert not preemption.is_background(one)
        assert not preemption.is_background(other)

    def test_single_model_without_objective_is_foreground(self):
        """A model that is alone on a device is in the foreground, even without an objective."""
        alone = member(None)

        assert not enter(alone).is_background(alone)

    def test_model_comes_forward_when_tighter_one_leaves(self):
        """A model moves to the foreground when the model with the tighter objective leaves."""
        tight, loose = member(25 * MS), member(100 * MS)
        preemption = enter(tight, loose)

        preemption.leave(tight)

        assert loose.told == [True, False]
        assert not preemption.is_background(loose)

    def test_model_that_leaves_background_is_not_lowered(self):
        """A background model that leaves the device returns to the usual priority."""
        tight, loose = member(25 * MS), member(100 * MS)
        preemption = enter(tight, loose)

        preemption.leave(loose)

        assert loose.told == [True, False]

    def test_running_batch_is_raised_with_its_model(self):
        """A running batch is raised when its model moves to the foreground."""
        tight, loose = member(25 * MS), member(100 * MS)
        preemption = enter(tight, loose)

        preemption.leave(tight)

        assert (loose.told, loose.raised) == ([True, False], [2])
        assert tight.raised == []

    def test_batch_that_outlives_its_model_stop_is_raised(self):
        """A batch that still runs when its background model stops is raised."""
        tight, loose = member(25 * MS), member(100 * MS)
        preemption = enter(tight, loose)

        preemption.leave(loose)

        assert loose.raised == [2]

    def test_another_objective_changes_the_levels(self):
        one, other = member(25 * MS), member(100 * MS)
        preemption = enter(one, other)

        other.claim.change(10 * MS, 4)

        assert preemption.is_background(one)
        assert (one.told, other.told) == ([True], [True, False])

    def test_objective_of_departed_model_changes_no_level(self):
        """A new objective of a model that has left the device changes no level."""
        one, other = member(25 * MS), member(100 * MS)
        preemption = enter(one, other)
        preemption.leave(other)

        other.claim.change(10 * MS, 4)

        assert one.told == []

    @pytest.mark.parametrize(
        ("obstacle", "text"),
        [("it runs on the event loop", "it runs on the event loop"), ("none", "its backend offers no BackgroundRuns")],
        ids=["obstacle", "no capability"],
    )
    def test_a_model_that_cannot_be_lowered_is_rejected(self, obstacle, text):
        tight, loose = member(25 * MS), member(100 * MS, name="faces", obstacle=obstacle)
        preemption = enter(tight)

        with pytest.raises(ValueError, match=f"faces cannot run in the background .*: {text}"):
            preemption.enter(loose)

        assert not preemption.is_background(tight)

    def test_model_is_rejected_if_other_cannot_be_lowered(self):
        """A model is rejected if it would move a model that cannot be lowered to the background."""
        loose = member(100 * MS, name="faces", obstacle="it runs on the event loop")
        preemption = enter(loose)

        with pytest.raises(ValueError, match="faces cannot run in the background"):
            preemption.enter(member(25 * MS))

    def test_the_foreground_needs_no_capability(self):
        tight, loose = member(25 * MS, obstacle="none"), member(100 * MS)

        assert enter(tight, loose).is_background(loose)

    def test_unlowerable_model_stays_in_foreground(self):
        """A model that cannot be lowered stays in the foreground when its objective becomes longer."""
        tight, loose = member(25 * MS, obstacle="none"), member(100 * MS)
        preemption = enter(tight, loose)

        tight.claim.change(200 * MS, 4)

        assert not preemption.is_background(tight)
        assert not preemption.is_background(loose)

    @given(st.lists(st.sampled_from([None, 1, 2, 3]), min_size=1, max_size=6), st.data())
    def test_levels_depend_on_members_not_on_their_order(self, slos, data):
        """The levels depend on the models that are on the device, not on the order of their arrival."""
        members = [member(slo) for slo in slos]
        preemption = enter(*members)
        left = data.draw(st.sets(st.sampled_from(range(len(members))), max_size=len(members)))
        for at in left:
            preemption.leave(members[at])

        there = [it for at, it in enumerate(members) if at not in left]

        for it in members:
            tightest_ns = min((other.claim.slo_ns for other in there), default=NEVER)
            expected = it in there and it.claim.slo_ns > tightest_ns
            assert preemption.is_background(it) == expected
            assert (it.told[-1] if it.told else False) == expected


class TestPauses:
    def late(self, preemption, times=100):
        for _ in range(times):
            end_background(preemption, ended_ns=100 * MS, limit_ns=100 * MS, is_promoted=True)

    def test_no_pause_before_the_first_batch(self):
        tight = member(25 * MS)

        assert enter(tight, member(100 * MS)).pause_ends_ns(tight) == 0

    def test_a_late_background_lengthens_the_pause(self):
        tight = member(25 * MS, durations=lambda size: MS)  # a full batch of 4 saves three quarters
        preemption = enter(tight, member(100 * MS))
        self.late(preemption)

        preemption.end_foreground(tight, 10 * MS, 11 * MS)

        assert preemption.pressure == pytest.approx(1.0)
        assert preemption.pause_ends_ns(tight) == pytest.approx((10 + 25 * MOST_PACE * 0.75) * MS, rel=1e-3)

    def test_no_pause_where_larger_batches_save_nothing(self):
        """The foreground does not pause if larger batches save nothing."""
        tight = member(25 * MS, durations=lambda size: size * MS)
        preemption = enter(tight, member(100 * MS))
        self.late(preemption)

        preemption.end_foreground(tight, 10 * MS, 11 * MS)

        assert preemption.pause_ends_ns(tight) == 10 * MS

    def test_no_pause_while_the_background_is_on_time(self):
        tight = member(25 * MS)
        preemption = enter(tight, member(100 * MS))
        for _ in range(10):
            end_background(preemption, ended_ns=20 * MS, limit_ns=100 * MS)

        preemption.end_foreground(tight, 10 * MS, 11 * MS)

        assert preemption.pause_ends_ns(tight) == 10 * MS

    def test_each_promoted_batch_adds_a_step_of_pressure(self):
        """Each batch that is promoted adds one step to the pressure."""
        preemption = Preemption()

        self.late(preemption, times=3)

        assert preemption.pressure == pytest.approx(0.3)

    def test_each_late_batch_adds_a_step_of_pressure(self):
        """Each background batch that ends too close to its deadline adds one step to the pressure."""
        preemption = Preemption()

        for _ in range(3):
            end_background(preemption, ended_ns=91 * MS, limit_ns=100 * MS)

        assert preemption.pressure == pytest.approx(0.3)

    @pytest.mark.parametrize(
        ("started_ms", "ended_ms", "fallen"),
        [(150, 160, 0.012), (150, 140 + 50, 0.018), (150, 230, 0.010)],
        ids=["in good time", "half of its time", "late"],
    )
    def test_pressure_falls_while_background_has_time(self, started_ms, ended_ms, fallen):
        """Pressure falls while the background is idle or its batches are well within their deadlines."""
        preemption = Preemption()
        self.late(preemption, times=5)  # the last one ends at 100 ms

        end_background(
            preemption,
            queued_ns=140 * MS,
            started_ns=started_ms * MS,
            ended_ns=ended_ms * MS,
            limit_ns=240 * MS,
        )

        assert preemption.pressure == pytest.approx(0.5 - fallen)

    def test_idle_time_of_the_background_counts_once(self):
        preemption = Preemption()
        self.late(preemption, times=5)

        for _ in range(2):  # two batches that ran at the same time
            end_background(preemption, queued_ns=200 * MS, ended_ns=210 * MS, limit_ns=300 * MS)

        assert preemption.pressure == pytest.approx(0.5 - 0.022)

    def test_requests_without_deadline_lower_the_pressure(self):
        preemption = Preemption()
        self.late(preemption, times=5)

        end_background(preemption, ended_ns=10**12, limit_ns=NEVER)

        assert preemption.pressure == 0.0

    def test_a_full_batch_does_not_pause(self):
        tight = member(25 * MS, full_at=1)
        preemption = enter(tight, member(100 * MS))
        self.late(preemption)
        preemption.end_foreground(tight, 10 * MS, 11 * MS)

        tight.queue.admit(None, None, None, 0, NEVER, 0)

        assert preemption.pause_ends_ns(tight) == 0

    def test_a_request_near_its_deadline_ends_the_pause(self):
        tight = member(25 * MS)
        preemption = enter(tight, member(100 * MS))
        self.late(preemption)
        preemption.end_foreground(tight, 10 * MS, 11 * MS)

        tight.queue.admit(None, None, None, 0, 12 * MS, 0)

        assert preemption.pause_ends_ns(tight) == 10 * MS  # two batches of a millisecond before the deadline

    def test_a_closed_loop_resets_the_preemption(self):
        tight, loose = member(25 * MS), member(100 * MS)
        preemption = enter(tight, loose)
        self.late(preemption)
        preemption.end_foreground(tight, 10 * MS, 11 * MS)

        preemption.forget()

        assert loose.told == [True, False]
        assert preemption.pressure == 0.0
        assert preemption.pause_ends_ns(tight) == 0

    @given(
        st.lists(st.integers(0, 300), max_size=30),
        st.integers(1, 50),
        st.floats(0.1, 1.0),
    )
    def test_pause_never_exceeds_share_of_the_objective(self, batches, slo_ms, saved):
        """A pause is never longer than its maximum share of the objective."""
        tight = member(slo_ms * MS, durations=lambda size: max(round(MS * (1 + (size - 1) * (1 - saved))), 1))
        preemption = enter(tight, member(100 * MS))
        for took_ms in batches:
            end_background(preemption, ended_ns=took_ms * MS, limit_ns=100 * MS, is_promoted=took_ms > 150)

        preemption.end_foreground(tight, 10 * MS, 11 * MS)

        assert 0.0 <= preemption.pressure <= 1.0
        assert 10 * MS <= preemption.pause_ends_ns(tight) <= 10 * MS + slo_ms * MS * MOST_PACE + 1
