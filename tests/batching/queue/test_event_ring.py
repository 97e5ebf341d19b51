"""EventRing, compared with lists of all events, of which its rings store only the last ones."""

import gc
import importlib

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streaminfer.batching.queue._event_ring_cy import EventRing

pytestmark = pytest.mark.uncompiled

REQUESTS, BATCHES = 8, 4


class AgainstLists(RuleBasedStateMachine):
    """State machine that records all events in lists, and compares a ring with their last entries."""

    def __init__(self):
        super().__init__()
        self.events = EventRing(REQUESTS, BATCHES)
        self.now_ns = 0
        self.arrivals, self.batches, self.records, self.drops = [], [], [], []
        self.running = {}
        self.ended = set()  # batches that have freed their row, and whose outcome is not noted
        self.dropped_total = 0

    def later(self, passed):
        self.now_ns += passed
        return self.now_ns

    @rule(passed=st.integers(0, 9), limit=st.sampled_from([0, 5, 50, 2**40]), priority=st.integers(-(2**31), 2**31 - 1))
    def arrive(self, passed, limit, priority):
        now_ns = self.later(passed)
        self.events.arrived(now_ns, limit, priority)
        self.arrivals.append((now_ns, limit, priority))

    @rule(
        passed=st.integers(0, 9),
        size=st.integers(1, 64),
        reason=st.sampled_from(["full", "planned"]),
        queued=st.integers(0, 99),
    )
    def launch(self, passed, size, reason, queued):
        now_ns = self.later(passed)
        number = len(self.batches)
        self.records.append(self.events.released(now_ns, size, reason, queued))
        assert self.records[-1].number == number
        taken = set(self.running.values())
        row = next(row for row in range(len(taken) + 1) if row not in taken)
        self.running[number] = row
        self.batches.append([now_ns, -1, row, size, queued, False, reason])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), passed=st.integers(0, 9))
    def take_turn(self, data, passed):
        now_ns = self.later(passed)
        number = data.draw(st.sampled_from(sorted(self.running)))
        self.events.started(self.records[number], now_ns)
        del self.running[number]
        taken = set(self.running.values())
        row = next(row for row in range(len(taken) + 1) if row not in taken)
        self.running[number] = row
        self.batches[number][0], self.batches[number][2] = now_ns, row

    @precondition(lambda self: self.running)
    @rule(data=st.data(), passed=st.integers(0, 9))
    def end(self, data, passed):
        now_ns = self.later(passed)
        number = data.draw(st.sampled_from(sorted(self.running)))
        self.events.ended(self.records[number], now_ns)
        del self.running[number]
        self.ended.add(number)
        self.batches[number][1] = now_ns

    @precondition(lambda self: self.ended)
    @rule(data=st.data(), passed=st.integers(0, 9), ok=st.booleans())
    def finish_what_has_ended(self, data, passed, ok):
        number = data.draw(st.sampled_from(sorted(self.ended)))
        self.events.finished(self.records[number], self.later(passed), ok)
        self.ended.remove(number)
        self.batches[number][5] = ok

    @precondition(lambda self: self.running)
    @rule(data=st.data(), passed=st.integers(0, 9), ok=st.booleans())
    def finish(self, data, passed, ok):
        now_ns = self.later(passed)
        number = data.draw(st.sampled_from(sorted(self.running)))
        self.events.finished(self.records[number], now_ns, ok)
        del self.running[number]
        self.batches[number][1] = now_ns
        self.batches[number][5] = ok

    @precondition(lambda self: len(self.running) < len(self.records))
    @rule(data=st.data(), passed=st.integers(0, 9))
    def end_what_does_not_run(self, data, passed):
        now_ns = self.later(passed)
        record = data.draw(st.sampled_from([it for it in self.records if it.number not in self.running]))
        self.events.ended(record, now_ns)
        self.events.started(record, now_ns)

    @rule(passed=st.integers(0, 1), reason=st.sampled_from(["overloaded", "infeasible"]), count=st.integers(0, 5))
    def drop(self, passed, reason, count):
        now_ns = self.later(passed)
        self.events.dropped(now_ns, reason, count)
        self.dropped_total += count
        if not count:
            return
        if self.drops and self.drops[-1][0] == now_ns and self.drops[-1][2] == reason:
            self.drops[-1][1] += count
        else:
            self.drops.append([now_ns, count, reason])

    @invariant()
    def the_snapshot_is_the_end_of_the_lists(self):
        shot = self.events.snapshot()
        arrivals = zip(*(shot[name].tolist() for name in ("arrivals_ns", "limits_ns", "priorities")), strict=True)
        assert list(arrivals) == self.arrivals[-REQUESTS:]
        names = ("batch_starts_ns", "batch_ends_ns", "batch_workers", "batch_sizes", "batch_queued", "batch_ok")
        batches = zip(*(shot[name].tolist() for name in names), shot["reasons"], strict=True)
        assert [list(batch) for batch in batches] == self.batches[-BATCHES:]
        drops = zip(shot["drops_ns"].tolist(), shot["drop_counts"].tolist(), shot["drop_reasons"], strict=True)
        assert [list(drop) for drop in drops] == self.drops[-BATCHES:]

    @invariant()
    def totals_forget_nothing(self):
        assert self.events.arrivals == len(self.arrivals)
        assert self.events.releases == len(self.batches)
        assert self.events.drops == self.dropped_total
        reasons = [batch[-1] for batch in self.batches]
        assert self.events.released_by_reason == {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
        counted = {}
        for _, count, reason in self.drops:
            counted[reason] = counted.get(reason, 0) + count
        assert self.events.dropped_by_reason == counted

    @invariant()
    def the_planner_reads_the_same_arrivals(self):
        limits = [limit for _, limit, _ in self.arrivals if limit][-64:]
        assert sorted(self.events.recent_limits_ns()) == sorted(limits)
        kept = self.arrivals[-REQUESTS:]
        since_ns = kept[len(kept) // 2][0] if kept else 0
        recent = [limit for at, limit, _ in kept[-64:] if at >= since_ns]
        assert self.events.longest_limit_ns(since_ns) == max(recent, default=0)
        timed = [(priority, limit) for _, limit, priority in kept if limit]
        classes = self.events.recent_classes()
        assert classes.keys() == {priority for priority, _ in timed}
        for priority, (share, shortest) in classes.items():
            own = [limit for other, limit in timed if other == priority]
            assert (share, shortest) == (pytest.approx(len(own) / len(kept)), min(own))
        kept = self.arrivals[-REQUESTS:]
        passed = self.now_ns + 3 - kept[0][0] if kept else 0
        expected = passed / (len(kept) - 1) if len(kept) > 1 and passed else float("inf")
        assert self.events.gap_ns(self.now_ns + 3) == expected
        assert self.events.gaps_ns(self.now_ns + 3)[0] == expected


TestAgainstLists = AgainstLists.TestCase


def test_batches_beyond_ring_size_get_and_free_rows():
    """More batches at once than the ring holds still get their own rows and free them at their ends."""
    events = EventRing(1, 2)
    records = [events.released(0, 1, "full", 0) for _ in range(1000)]
    assert events.snapshot()["batch_workers"].tolist() == [998, 999]
    for record in reversed(records[3:900]):
        events.finished(record, 1, True)
        events.finished(record, 1, True)
    rows = []
    for _ in range(898):
        events.released(2, 1, "full", 0)
        rows.append(int(events.snapshot()["batch_workers"][-1]))
    assert rows == [*range(3, 900), 1000]


def test_rows_are_lowest_free_in_any_order_of_ends():
    """Each batch gets the lowest free row, whatever the order in which batches end."""
    events = EventRing()
    rng = np.random.default_rng(5)
    running = []
    for step in range(5000):
        if running and rng.random() < 0.5:
            events.finished(running.pop(rng.integers(len(running))), step, True)
        else:
            taken = {record.worker for record in running}
            running.append(events.released(step, 1, "full", 0))
            assert running[-1].worker == next(row for row in range(len(taken) + 1) if row not in taken)
    assert len(running) > 10


def test_a_part_of_a_batch_has_no_record():
    """The ring ignores a part of a batch, which has no record."""
    events = EventRing()
    events.finished(None, 5, True)
    events.ended(None, 5)
    events.started(None, 5)

    assert (events.releases, events.last_end_ns) == (0, 0)


def test_rate_is_of_last_256_and_falls_with_silence():
    """The arrival rate is computed over the last 256 requests, and falls while none arrive."""
    events = EventRing()
    assert events.gap_ns(5) == float("inf")
    for at in range(1000):
        events.arrived(at * 1000, 0, 0)
    for at in range(256):
        events.arrived(10**6 + at * 10, 0, 0)
    latest_ns = 10**6 + 2550
    assert events.gap_ns(latest_ns) == 10.0
    assert events.gap_ns(latest_ns + 2550) == 20.0
    assert events.gaps_ns(latest_ns + 2550) == (20.0, 2550 / 63 + 10.0, 2550 / 15 + 10.0)
    assert events.recent_limits_ns() == []


def test_simultaneous_arrivals_have_no_rate():
    events = EventRing()
    events.arrived(7, 0, 0)
    events.arrived(7, 0, 0)
    assert events.gap_ns(7) == float("inf")
    assert events.gap_ns(9) == 2.0


def test_requests_without_deadline_evict_no_limits():
    """Requests without a deadline push no timeouts out of the ring."""
    events = EventRing()
    events.arrived(0, 50, 0)
    for at in range(200):
        events.arrived(at, 0, 0)
    assert events.recent_limits_ns() == [50]
    for at in range(64):
        events.arrived(at, 100 + at, 0)
    assert sorted(events.recent_limits_ns()) == list(range(100, 164))


def test_classes_are_those_of_the_last_256():
    """A class has its share of the last 256 arrivals and its shortest timeout among them."""
    events = EventRing(1024)
    for _ in range(300):
        events.arrived(0, 5, 7)
    for at in range(192):
        events.arrived(at, 30 + at % 3, 0)

    assert events.recent_classes() == {0: (pytest.approx(0.75), 30), 7: (pytest.approx(0.25), 5)}
    for _ in range(64):
        events.arrived(0, 40, 0)
    assert events.recent_classes() == {0: (pytest.approx(1.0), 30)}


def test_classes_count_those_without_a_deadline():
    """Arrivals without a deadline reduce the shares of the classes, and form no class."""
    events = EventRing()
    assert events.recent_classes() == {}
    for _ in range(3):
        events.arrived(0, 0, 1)
    events.arrived(0, 50, -2)

    assert events.recent_classes() == {-2: (0.25, 50)}


def test_a_snapshot_does_not_change_with_the_ring():
    events = EventRing(2, 2)
    record = events.released(5, 1, "full", 0)
    events.arrived(5, 0, 0)
    before = events.snapshot()
    events.finished(record, 9, True)
    events.arrived(6, 0, 0)
    events.released(9, 1, "full", 0)
    assert before["batch_ends_ns"].tolist() == [-1]
    assert before["arrivals_ns"].tolist() == [5]
    assert before["released"] == {"full": 1}
    assert {array.dtype for array in before.values() if isinstance(array, np.ndarray)} == {
        np.dtype(np.int64),
        np.dtype(bool),
    }


def test_compiled_records_are_not_tracked_by_gc():
    """The garbage collector does not track compiled records, so it does not visit the thousands in a ring."""
    module = importlib.import_module("streaminfer.batching.queue._event_ring_cy")
    record = module.EventRing().released(0, 1, "full", 0)

    assert gc.is_tracked(record) == module.__file__.endswith(".py")


def test_repr_counts_arrivals_batches_and_drops():
    events = EventRing()
    events.arrived(0, 0, 0)
    events.dropped(0, "overloaded", 3)
    assert repr(events) == "EventRing(1 arrivals, 0 batches, 3 drops)"


def run_at_random(module, seed):
    rng = np.random.default_rng(seed)
    events, running, seen = module.EventRing(16, 8), [], []
    for step in range(600):
        action, now_ns = rng.random(), int(step * 1000 + rng.integers(900))
        if action < 0.4:
            events.arrived(now_ns, int(rng.integers(0, 3) * 10**7), int(rng.integers(3)))
        elif action < 0.65:
            running.append(
                events.released(now_ns, int(rng.integers(1, 9)), f"reason {rng.integers(4)}", int(rng.integers(9)))
            )
        elif action < 0.9 and running:
            events.finished(running.pop(rng.integers(len(running))), now_ns, bool(rng.random() < 0.8))
        else:
            events.dropped(now_ns, f"drop {rng.integers(3)}", int(rng.integers(1, 4)))
        limits = events.recent_limits_ns(), events.longest_limit_ns(now_ns - 5000)
        seen.append((events.gap_ns(now_ns), *limits, repr(events)))
        if step % 20 == 0:
            seen.append({k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in events.snapshot().items()})
    return seen


@pytest.mark.parametrize("seed", range(5))
def test_compiled_and_plain_agree(seed, plain):
    compiled = importlib.import_module("streaminfer.batching.queue._event_ring_cy")
    assert run_at_random(compiled, seed) == run_at_random(plain("batching.queue._event_ring_cy"), seed)
