"""States of streams that move between replicas: full replicas, resets, imports, many at once, stores that restart."""

import asyncio
from types import SimpleNamespace

import pytest
from moving_fleet import Fleet, pause
from recurrent import Reference

import streaminfer as si
from streaminfer.protocols import adapt
from streaminfer.serving.ray.stream_ledger import StreamLedger
from streaminfer.serving.ray.stream_store import RemoteStreamStore, StreamStore


async def test_a_stream_without_a_place_keeps_its_state(loop):
    """A stream that moves to a full replica keeps its state, and continues when that replica has room."""
    reference = Reference()
    async with Fleet(loop) as fleet:
        assert await fleet.step("a", 1) == reference(1)
        for stream in "1234":
            await fleet.step("b", 9, stream)
        await fleet.stacks["a"].stop()
        for _ in range(2):
            with pytest.raises(si.Overloaded, match="4 streams have state already"):
                await fleet.step("b", 2)

        adapt(fleet.stacks["b"]).capabilities().stream_states.end_stream("1")
        assert await fleet.step("b", 2) == reference(2)


async def test_rejected_stream_is_left_to_other_replicas(loop):
    """A stream that a full replica rejects continues on another replica."""
    reference = Reference()
    async with Fleet(loop, "abc") as fleet:
        assert await fleet.step("a", 1) == reference(1)
        for stream in "1234":
            await fleet.step("b", 9, stream)
        with pytest.raises(si.Overloaded):
            await fleet.step("b", 2)
        assert await fleet.step("c", 2) == reference(2)


async def test_reset_holds_while_rejected_state_goes_back(loop):
    """A reset takes effect even while the state of the rejected stream is on its way back to the store."""

    class Slow(StreamStore):
        async def pass_on(self, replica, records):
            await asyncio.sleep(0.1)
            await super().pass_on(replica, records)

    async with Fleet(loop, store=Slow) as fleet:
        await fleet.step("a", 1)
        for stream in "1234":
            await fleet.step("b", 9, stream)
        states = adapt(fleet.stacks["b"]).capabilities().stream_states
        rejected = asyncio.create_task(fleet.step("b", 2, timeout_s=3.0))
        await asyncio.sleep(0.15)
        states.end_stream("1")
        states.reset_stream("s")
        with pytest.raises(si.Overloaded):
            await rejected
        assert await fleet.step("b", 3) == Reference()(3)


async def test_a_lost_replica_loses_no_reset(loop):
    """If a replica is lost after a reset, the stream does not resume from the snapshot before the reset."""
    async with Fleet(loop) as fleet:
        await fleet.step("a", 1)
        await asyncio.sleep(0.6)
        adapt(fleet.stacks["a"]).capabilities().stream_states.reset_stream("s")
        await asyncio.sleep(0.6)
        pause(fleet.stacks["a"].layers[0])
        await asyncio.sleep(2.0)
        assert await fleet.step("b", 2) == Reference()(2)


async def test_a_reset_without_a_request_hides_no_later_step(loop):
    """A reset whose request was rejected does not hide later steps of the stream on other replicas."""
    reference = Reference()
    async with Fleet(loop) as fleet:
        adapt(fleet.stacks["b"]).capabilities().stream_states.reset_stream("s")
        await asyncio.sleep(0.01)
        assert await fleet.step("a", 1) == reference(1)
        assert await fleet.step("b", 2) == reference(2)


async def test_state_is_set_while_its_stream_moves(loop):
    """A state that is imported while its stream moves takes effect either before or after the other replica's step."""

    class Slow(StreamStore):
        async def pass_on(self, replica, records):
            await asyncio.sleep(0.1)
            await super().pass_on(replica, records)

    def follow(*steps):
        reference = Reference()
        return [reference(x) for x in steps][-1]

    async with Fleet(loop, store=Slow) as fleet:
        await fleet.step("a", 1)
        states = adapt(fleet.stacks["a"]).capabilities().stream_states
        record = states.export_state("s")
        await fleet.step("a", 2)
        moved = asyncio.create_task(fleet.step("b", 3))
        await asyncio.sleep(0.05)
        states.import_state("s", record)

        found = (await moved, await fleet.step("a", 4))
        assert found in {(follow(1, 3), follow(1, 3, 4)), (follow(1, 2, 3), follow(1, 4))}


async def test_a_store_that_started_again_gets_all_states(loop, caplog):
    """A restarted store gets the states of all streams, even without further steps: their replica may be lost later."""

    class Restarting(StreamStore):
        is_down = False

        async def wanted(self, replica):
            if self.is_down:
                raise OSError("the process of the store is gone")
            return await super().wanted(replica)

    reference = Reference()
    async with Fleet(loop, store=Restarting) as fleet:
        assert await fleet.step("a", 1) == reference(1)
        await asyncio.sleep(1.0)
        fleet.store._ledger, fleet.store.is_down = StreamLedger(), True
        await asyncio.sleep(10.0)
        fleet.store.is_down = False
        await asyncio.sleep(1.1)
        pause(fleet.stacks["a"].layers[0])
        await asyncio.sleep(2.0)
        assert await fleet.step("b", 2) == reference(2)
    assert "the store of streams does not answer" in caplog.text


async def test_killed_store_is_made_again(loop):
    """After the store is killed, a second one is created, and the replicas send it all states."""

    class Died(Exception):
        pass

    class Actor:
        """Fake of a Ray actor whose calls fail when it dies."""

        def __init__(self):
            self.inner, self.is_dead = StreamStore(loop.clock), asyncio.Event()

        def __getattr__(self, name):
            return SimpleNamespace(remote=lambda *arguments: self.call(name, *arguments))

        async def call(self, name, *arguments):
            answer = asyncio.ensure_future(getattr(self.inner, name)(*arguments))
            dies = asyncio.ensure_future(self.is_dead.wait())
            await asyncio.wait([answer, dies], return_when="FIRST_COMPLETED")
            if self.is_dead.is_set():
                answer.cancel()
                raise Died
            dies.cancel()
            return await answer

    actors = []

    def connect():
        if not actors or actors[-1].is_dead.is_set():
            actors.append(Actor())
        return actors[-1]

    reference = Reference()
    async with Fleet(loop, store=lambda _clock: RemoteStreamStore(connect, Died)) as fleet:
        assert await fleet.step("a", 1) == reference(1)
        actors[0].is_dead.set()
        await asyncio.sleep(1.5)
        assert await fleet.step("b", 2) == reference(2)
    assert len(actors) == 2


async def test_stop_moves_all_idle_streams_in_one_call(loop):
    """A stop sends all idle streams to the store in one call.

    A call for each of thousands of streams would take too long. A stream with a running step follows in a later call.
    """
    calls = []

    class Counting(StreamStore):
        async def pass_on(self, replica, records):
            calls.append(sorted(records))
            await super().pass_on(replica, records)

    takes_s = [0.0]
    async with Fleet(loop, store=Counting, duration_s=lambda _size: takes_s[0]) as fleet:
        for stream in ("r", "s", "t", "u"):
            await fleet.step("a", 1, stream)
        takes_s[0] = 0.1
        moving = fleet.stacks["a"].layers[0]
        running = asyncio.create_task(fleet.step("a", 2, "u"))
        await asyncio.sleep(0.01)
        moving._spawn(moving._release_all(list(moving._streams)))
        await running
        await asyncio.sleep(0.01)
        assert calls == [["r", "s", "t"], ["u"]]
        of_u = Reference()
        of_u(1), of_u(2)
        assert await fleet.step("b", 3, "u") == of_u(3)
