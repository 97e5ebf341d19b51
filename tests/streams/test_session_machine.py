"""Random operations on sessions: sources, services that succeed, fail, reject or hang, and consumers that leave.

The expected state is plain Python: the frames offered to each stream, the outcomes of its requests, and the results
that its consumer can get. After each operation the loop runs until nothing is ready; then nothing may wait that could
continue.
"""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from live_sources import Service, States, add_up

import streaminfer as si
from streaminfer.streams import Block, Frame, LatestOnly, StreamSession
from streaminfer.testing import VirtualLoop

pytestmark = pytest.mark.uncompiled
END = object()


class Feed:
    """Source that yields the items of its queue until `END` or an exception."""

    def __init__(self):
        self.items = asyncio.Queue()
        self.closed = 0

    async def __aiter__(self):
        try:
            while (item := await self.items.get()) is not END:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed += 1


class Model:
    """Expected state of one stream: the numbers of its frames, by outcome."""

    def __init__(self, feed, results):
        self.feed, self.results = feed, results
        self.offered = 0
        self.outcomes = {}  # number → outcome of its request: "ok" or an error
        self.delivered = []
        self.ends = None  # how the source ends: `END` or an error
        self.is_over = False
        self.is_closed = False


class SessionMachine(RuleBasedStateMachine):
    policy, max_in_flight, max_age_s = LatestOnly(), 1, None

    def __init__(self):
        super().__init__()
        self.loop = VirtualLoop()
        asyncio.set_event_loop(self.loop)
        self.pending = []  # (request, future)
        self.states = States()
        self.service = Service(self.answer, self.states)
        self.session = StreamSession(
            self.service,
            policy=self.policy,
            max_in_flight=self.max_in_flight,
            max_age_s=self.max_age_s,
            clock=self.loop.clock,
        )
        self.streams = {}
        self.opened = 0

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    async def answer(self, request):
        future = self.loop.create_future()
        entry = (request, future)
        self.pending.append(entry)
        try:
            return await future
        finally:
            self.pending.remove(entry)

    async def settle(self):
        for _ in range(30):
            await asyncio.sleep(0)

    def open_streams(self):
        return [stream_id for stream_id, model in self.streams.items() if not model.is_over]

    @precondition(lambda self: len(self.open_streams()) < 4)
    @rule()
    def stream_opens(self):
        async def start():
            feed = Feed()
            stream_id = self.opened
            self.streams[stream_id] = Model(feed, self.session(feed, stream_id=stream_id))
            await self.settle()

        self.opened += 1
        self.run(start())

    @precondition(lambda self: self.open_streams())
    @rule(
        data=st.data(),
        count=st.integers(1, 3),
        discontinuities=st.booleans(),
        back_s=st.sampled_from([0.0, 0.0, 0.05, -1.0, 9.0]),
    )
    def frames_arrive(self, data, count, discontinuities, back_s):
        stream_id = data.draw(st.sampled_from(self.open_streams()))
        model = self.streams[stream_id]
        if model.ends is not None:
            return

        async def feed():
            for _ in range(count):
                captured_ns = self.loop.clock() - round(back_s * 1e9)
                model.feed.items.put_nowait(Frame((stream_id, model.offered), captured_ns, None, discontinuities))
                model.offered += 1
            await self.settle()

        self.run(feed())

    @precondition(lambda self: self.pending)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(["ok", "ok", "ok", ValueError("bad"), si.DeadlineExceeded("late"), "overloaded"]),
    )
    def request_ends(self, data, outcome):
        request, future = data.draw(st.sampled_from(self.pending))
        stream_id, number = request.inputs

        async def end():
            if outcome == "ok":
                self.streams[stream_id].outcomes[number] = outcome
                future.set_result(("y", number))
            elif outcome == "overloaded":
                future.set_exception(si.Overloaded("full", retry_after_s=0.01))
            else:
                self.streams[stream_id].outcomes[number] = outcome
                future.set_exception(outcome)
            await self.settle()
            await asyncio.sleep(0.02)  # rejected frames are sent again within this time
            await self.settle()

        self.run(end())

    @precondition(lambda self: self.open_streams())
    @rule(data=st.data())
    def consumer_takes(self, data):
        stream_id = data.draw(st.sampled_from(self.open_streams()))
        model = self.streams[stream_id]

        async def take():
            try:
                return await asyncio.wait_for(anext(model.results), 0.001)
            except TimeoutError:
                return None
            finally:
                await self.settle()

        try:
            result = self.run(take())
        except StopAsyncIteration:
            assert model.ends is END or model.is_closed
            model.is_over = True
            return
        except OSError:
            assert isinstance(model.ends, OSError)
            model.is_over = True
            return
        if result is not None:
            self.check(model, stream_id, result)

    def check(self, model, stream_id, result):
        number = result.number
        assert result.stream_id == stream_id
        assert number not in model.delivered
        assert all(earlier < number for earlier in model.delivered)
        model.delivered.append(number)
        outcome = model.outcomes[number]
        if outcome == "ok":
            assert (result.outputs, result.error) == (("y", number), None)
        else:
            assert result.error is outcome
            assert self.max_age_s is None or not isinstance(outcome, si.DeadlineExceeded)

    @precondition(lambda self: self.open_streams())
    @rule(data=st.data(), how=st.sampled_from([END, END, OSError("unplugged")]))
    def source_ends(self, data, how):
        model = self.streams[data.draw(st.sampled_from(self.open_streams()))]
        if model.ends is None and not model.is_closed:
            model.ends = how

            async def end():
                model.feed.items.put_nowait(how)
                await self.settle()

            self.run(end())

    @precondition(lambda self: self.open_streams())
    @rule(data=st.data(), how=st.sampled_from(["close", "remove"]))
    def stream_is_closed(self, data, how):
        stream_id = data.draw(st.sampled_from(self.open_streams()))
        model = self.streams[stream_id]
        model.is_closed = True

        async def close():
            await (model.results.aclose() if how == "close" else self.session.remove(stream_id))
            await self.settle()

        self.run(close())
        assert stream_id not in self.session.streams
        assert model.feed.closed == 1
        assert ("end", stream_id) in self.states.calls

    @rule(seconds=st.sampled_from([0.001, 0.03, 1.0]))
    def time_passes(self, seconds):
        async def wait():
            await asyncio.sleep(seconds)
            await self.settle()  # requests end at this instant too

        self.run(wait())

    @invariant()
    def each_frame_is_counted_once(self):
        statistics = self.session.statistics()
        assert add_up(statistics)
        assert all(add_up(one) for one in statistics.streams.values())
        assert statistics.delivered + statistics.failed == sum(len(it.delivered) for it in self.streams.values())
        if self.policy.waits and self.max_age_s is None:
            assert set(statistics.dropped) <= {"closed"}
        assert statistics.open_streams == len(self.session.streams)

    @invariant()
    def what_can_go_on_has_gone_on(self):
        for stream_id in self.session.streams:
            model = self.streams[stream_id]
            one = model.results.statistics()
            running = sum(1 for request, _ in self.pending if request.stream_id == stream_id)
            assert running <= self.max_in_flight
            assert one.in_flight <= self.max_in_flight + self.policy.waits
            assert one.waiting <= self.policy.max_waiting
            if one.waiting and not running:
                assert one.in_flight >= self.max_in_flight + self.policy.waits
            if not model.feed.items.empty():  # the source is held
                assert self.policy.waits
                assert one.waiting > self.policy.max_waiting // 4

    def teardown(self):
        async def end():
            await self.session.aclose()
            return asyncio.all_tasks() - {asyncio.current_task()}

        try:
            assert self.run(end()) == set()
            assert not self.pending
            statistics = self.session.statistics()
            assert statistics.waiting == statistics.in_flight == statistics.open_streams == 0
            assert add_up(statistics)
            ended = [stream_id for call, stream_id in self.states.calls if call == "end"]
            assert sorted(ended) == list(range(1, self.opened + 1))
            assert all(model.feed.closed == 1 for model in self.streams.values())
        finally:
            asyncio.set_event_loop(None)
            self.loop.close()


class Latest(SessionMachine):
    pass


class LatestWithAge(SessionMachine):
    max_in_flight, max_age_s = 2, 0.1


class Blocks(SessionMachine):
    policy, max_in_flight = Block(max_waiting=4), 2


class BlocksWithAge(SessionMachine):
    policy, max_in_flight, max_age_s = Block(max_waiting=1), 1, 0.5


for machine in (Latest, LatestWithAge, Blocks, BlocksWithAge):
    machine.TestCase.settings = settings(max_examples=25, stateful_step_count=30)
TestLatest, TestLatestWithAge = Latest.TestCase, LatestWithAge.TestCase
TestBlocks, TestBlocksWithAge = Blocks.TestCase, BlocksWithAge.TestCase


def test_deadlines_at_the_end_of_a_time_step():
    """If the deadlines of waiting frames pass at the end of a time step, the held source continues in that step."""
    first = SimpleNamespace(draw=lambda _: 1)
    machine = BlocksWithAge()
    try:
        machine.stream_opens()
        machine.frames_arrive(first, 2, False, 0.0)  # one runs, and one waits
        machine.frames_arrive(first, 3, False, -1.0)  # the age of these counts from their arrival, at 0.5 s
        machine.time_passes(1.0)
        machine.what_can_go_on_has_gone_on()
        assert machine.session.statistics().dropped == {"deadline_exceeded": 4}
    finally:
        machine.teardown()
