"""The table of streams, compared with a dict of states under random operations."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from streaminfer.request import Request
from streaminfer.streams.state._step_cy import Block
from streaminfer.streams.state._stream_table_cy import StreamTable

pytestmark = pytest.mark.uncompiled

MAX_STREAMS = 6
STREAMS = st.integers(0, 8)


def rows(ids):
    return [Request(None, stream_id=stream_id) for stream_id in ids]


class TableMachine(RuleBasedStateMachine):
    """Random operations on a table whose memory is a dict of slots and the lists of the blocks.

    A state is a number, 0 at first. Each state must be where the table says it is.
    """

    waiting = Bundle("waiting")
    running = Bundle("running")
    moving = Bundle("moving")

    def __init__(self):
        super().__init__()
        self.table = StreamTable(MAX_STREAMS)
        self.now_ns = 0
        self.arena = {}
        self.states = {}  # the expected states; streams at 0 may be missing from the table
        self.registered = []  # steps that have not ended, in their order
        self.started = {}  # step → the streams that may still commit, with the states that they read
        self.made = 0

    def read(self, stream):
        if stream is None or stream.is_initial:
            return 0
        if stream.imported is not None:
            return stream.imported
        return stream.block.arrays[stream.row] if stream.block is not None else self.arena[stream.slot]

    @rule(ids=st.lists(st.one_of(STREAMS, st.none()), min_size=1, max_size=5), target=waiting)
    def begin(self, ids):
        self.now_ns += 1
        place = MAX_STREAMS - len(self.table)
        known = self.known.intersection(ids)
        new = list(dict.fromkeys(each for each in ids if each is not None and each not in known))
        rejected = set(new[place:])

        steps = self.table.begin(rows(ids), self.now_ns)

        names = [[ids[row] for row in step.rows] for step in steps]
        assert [[stream.stream_id for stream in step.streams] for step in steps] == names
        assert all(len(set(step)) == len(step) for step in names)
        accepted = [each for each in ids if each is not None and each not in rejected]
        assert sorted(each for step in names for each in step) == sorted(accepted)
        for stream_id in known | set(new[:place]):
            self.states.setdefault(stream_id, 0)
        self.registered.extend(step for step in steps if step.rows)
        for step in steps:
            if not step.rows:
                assert self.table.end(step) == []
        return tuple(step for step in steps if step.rows)

    @rule(steps=consumes(waiting), target=running)
    def start(self, steps):
        begun = []
        for step in steps:
            names = {stream.stream_id for stream in step.streams}
            before = self.registered[: self.registered.index(step)]
            blocked = any(self.alive(names, step, one) for one in before)
            assert (step.pending > 0) == blocked
            if step.pending or step.ended:
                continue
            block = self.table.locate(step)
            read = [self.read(stream) for stream in step.streams]
            assert read == [
                self.states.get(s.stream_id, 0) if self.table.find(s.stream_id) is s else 0 for s in step.streams
            ]
            if block is not None:
                assert block.arrays == read
                assert block.size == len(read)
            self.started[step] = {s.stream_id: s for s in step.streams if self.table.find(s.stream_id) is s}
            begun.append(step)
        self.later = [step for step in steps if step not in begun]
        for step in self.later:
            self.end_step(step)
        return tuple(begun)

    def alive(self, names, step, other):
        mine = set(step.streams)
        return any(stream in mine for stream in other.streams)

    @rule(steps=consumes(running), failed=st.sets(st.integers(0, 4)), fails=st.booleans())
    def finish(self, steps, failed, fails):
        for step in steps:
            may = self.started.pop(step)
            if not fails:
                self.made += 1
                values = [self.made * 100 + row for row in range(len(step.streams))]
                self.table.commit(step, Block(values, len(values)), failed)
                for row, stream in enumerate(step.streams):
                    if row not in failed and stream.stream_id in may:
                        self.states[stream.stream_id] = values[row]
            self.end_step(step)

    def end_step(self, step):
        ready = self.table.end(step)
        if step.ended:
            self.registered = [one for one in self.registered if not one.ended]
        assert all(one.pending == 0 and not one.ended for one in ready)

    @rule(stream_id=STREAMS)
    def reset(self, stream_id):
        self.table.reset(stream_id)
        self.forget(stream_id)

    @rule(stream_id=STREAMS)
    def drop(self, stream_id):
        self.table.drop(stream_id)
        assert stream_id not in self.known
        self.forget(stream_id)

    def forget(self, stream_id):
        self.states.pop(stream_id, None)
        for may in self.started.values():
            may.pop(stream_id, None)

    @rule(stream_id=STREAMS)
    def put(self, stream_id):
        self.made += 1
        had_place = stream_id in self.known or len(self.table) < MAX_STREAMS
        assert self.table.put(stream_id, self.made, self.now_ns) == had_place
        if had_place:
            self.forget(stream_id)
            self.states[stream_id] = self.made

    @rule(age=st.integers(-3, 6))  # below 0: the limit is the present or later
    def expire(self, age):
        self.now_ns += 1
        busy = {stream.stream_id for step in self.registered for stream in step.streams}
        known = {each: self.table.find(each).seen_ns for each in self.known}
        seen_ns = self.table.expire(self.now_ns - 1 - age, self.now_ns)
        for stream_id, last_ns in known.items():
            stale = last_ns <= self.now_ns - 1 - age
            if stream_id not in self.known:
                assert stale
                self.forget(stream_id)
            elif stale:
                assert stream_id in busy
                assert self.table.find(stream_id).seen_ns == self.now_ns
        left = [self.table.find(each).seen_ns for each in self.known]
        assert seen_ns == min(left, default=-1)

    @rule(keep=st.integers(0, 3), target=moving)
    def take_back(self, keep):
        work = self.table.begin_write_back(keep)
        if work is not None:
            for row, slot in zip(work.rows, work.slots, strict=True):
                self.arena[slot] = work.block.arrays[row]
        return work

    @rule(work=consumes(moving), copied=st.booleans())
    def taken_back(self, work, copied):
        if work is not None:
            self.table.end_write_back(work, copied)

    @rule()
    def restart(self):
        self.table.restart()
        for stream_id in range(9):
            self.forget(stream_id)

    @precondition(lambda self: not self.registered)
    @rule()
    def clear(self):
        self.table.clear()
        assert len(self.table) == 0
        for stream_id in list(self.states):
            self.forget(stream_id)

    @property
    def known(self):
        return {each for each in range(9) if self.table.find(each) is not None}

    @invariant()
    def states_are_where_the_table_says(self):
        assert len(self.table) == len(self.known) <= MAX_STREAMS
        for stream_id in range(9):
            assert self.read(self.table.find(stream_id)) == self.states.get(stream_id, 0), stream_id
        slots = [s.slot for each in self.known if (s := self.table.find(each)).slot >= 0]
        assert len(slots) == len(set(slots)) <= self.table.slots_in_use
        assert self.table.imported == sum(self.table.find(each).imported is not None for each in self.known)
        for block in self.table.blocks:
            assert block.live == sum(stream is not None for stream in block.streams) > 0

    def teardown(self):
        for step in list(self.registered):
            self.table.end(step)
        for step in list(self.registered):
            self.table.end(step)
        for stream_id in self.known:
            self.table.drop(stream_id)
        assert len(self.table) == 0
        assert self.table.blocks == []


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=150, stateful_step_count=40)


def test_a_step_waits_for_all_before_it():
    """A step waits for all earlier steps of its streams, also across an abandoned step."""
    table = StreamTable(4)
    (first,), (second,), (third,) = (table.begin(rows(names), at) for at, names in enumerate(["ab", "bc", "c"]))

    assert (first.pending, second.pending, third.pending) == (0, 1, 1)
    assert table.end(second) == []  # abandoned while it waited
    assert third.pending == 1

    assert table.end(first) == [third]
    assert second.ended


def test_slots_are_freed_when_their_reader_ends():
    """The slot of a stream that ends during its step stays in use until the step has ended."""
    table = StreamTable(4)
    (step,) = table.begin(rows("a"), 1)
    table.locate(step)
    table.commit(step, Block(["state"], 1))
    table.end(step)
    table.end_write_back(table.begin_write_back(0), True)
    assert table.slots_in_use == 1
    (step,) = table.begin(rows("a"), 2)
    table.locate(step)

    table.drop("a")

    assert table.slots_in_use == 1
    table.end(step)
    assert table.slots_in_use == 0
