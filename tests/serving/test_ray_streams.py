"""Streams that move between the replicas of a deployment: the ledger, and replicas and a store in one event loop."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from moving_fleet import Fleet, go_on, pause
from recurrent import EXAMPLE, Reference

import streaminfer as si
from streaminfer.protocols import adapt
from streaminfer.serving.ray.replica import StackReplica
from streaminfer.serving.ray.stream_ledger import IDLE_NS, SILENT_NS, Claim, StreamLedger
from streaminfer.serving.ray.stream_store import StreamStore

MS = 1_000_000


def test_stream_moves_only_after_its_state_is_sent():
    """A claim is granted after the previous owner has sent the state; later states from that owner are stale."""
    ledger = StreamLedger()
    assert ledger.claim("s", "a", 0) == Claim()
    assert ledger.claim("s", "b", 1) == Claim(owner="a")

    ledger.pass_on("a", {"s": b"state"}, 2)
    assert ledger.claim("s", "b", 3) == Claim(b"state", is_other=True)
    assert ledger.claim("s", "b", 3) == Claim(b"state")
    assert ledger.store("a", {"s": b"old"}, 4) == ["s"]
    assert ledger.statistics().moved == 1


def test_silent_owner_loses_streams_to_snapshots():
    """A silent owner loses its streams, which resume from their snapshots or start again without one."""
    ledger = StreamLedger()
    ledger.claim("s", "a", 0)
    ledger.claim("none", "a", 0)
    ledger.store("a", {"s": b"state"}, 300 * MS)

    assert ledger.claim("s", "b", 299 * MS + SILENT_NS).owner == "a"
    assert ledger.claim("s", "b", 300 * MS + SILENT_NS).record == b"state"
    assert ledger.claim("none", "b", 300 * MS + SILENT_NS) == Claim(is_other=True)
    statistics = ledger.statistics()
    assert (statistics.moved, statistics.resumed, statistics.restarted) == (0, 1, 1)
    assert statistics.oldest_snapshot_s == pytest.approx(SILENT_NS / 1e9)


def test_search_for_idle_streams_every_ten_seconds():
    """The ledger searches all streams only every ten seconds, because each replica sends two snapshots a second."""
    ledger, forgotten = StreamLedger(), []
    forget = ledger.forget
    ledger.forget = lambda names: forgotten.append(forget(names))
    for number in range(100):
        ledger.expire(number * 500 * MS)
    assert len(forgotten) == 5


def test_replica_does_not_bring_back_lost_stream():
    """After a stream ends at the replica that took it, the ledger rejects states that its former replica still has."""
    ledger = StreamLedger()
    ledger.claim("s", "a", 0)
    ledger.take("s", "b", "a", 0)
    ledger.forget(["s"])
    assert ledger.store("a", {"s": b"old"}, 0) == ["s"]
    assert ledger.claim("s", "b", 0) == Claim()


@pytest.mark.parametrize(("sends_snapshot", "leaves_s"), [(False, 120.0), (True, 239.0)])
def test_store_leaves_after_two_minutes_without_calls(sends_snapshot, leaves_s):
    """A store leaves after two minutes without calls, even if no replica has ever sent a snapshot."""

    async def main(loop):
        left = []
        store = StreamStore(loop.clock, on_idle=lambda: left.append(loop.time()))
        assert await store.wanted("a") == []
        await asyncio.sleep(119.0 - loop.time())
        if sends_snapshot:
            await store.store("a", {})
        await asyncio.sleep(200.0)
        return left

    assert si.testing.run(main) == [leaves_s]


def test_idle_and_ended_streams_are_forgotten():
    ledger = StreamLedger()
    for name in ("old", "ended", "used"):
        ledger.claim(name, "a", 0)
    ledger.forget(["ended", "unknown"])
    ledger.store("a", {"used": b""}, 1)
    ledger.expire(IDLE_NS)
    assert ledger.statistics().streams == 1


@given(st.lists(st.tuples(st.sampled_from("cthsf"), st.sampled_from("xy"), st.sampled_from("abc"))))
def test_a_stream_has_at_most_one_owner(calls):
    """The ledger stores only records of the stream's last owner, and tells a replica once that it has lost a stream."""
    ledger, owners, now_ns = StreamLedger(), {}, 0
    untold = {name: set() for name in "abc"}
    for what, stream, replica in calls:
        now_ns += 400 * MS
        if what in "ct":
            owner = owners.get(stream, "")
            answer = ledger.claim(stream, replica, now_ns)
            if what == "t" and answer.owner:
                answer = ledger.take(stream, replica, answer.owner, now_ns)
            if answer.owner:
                assert owner == answer.owner != replica
            else:
                assert answer.is_other == (stream in owners and owner != replica)
                if owner not in {"", replica}:
                    untold[owner].add(stream)
                owners[stream] = replica
            untold[replica].discard(stream)
        elif what == "f":
            ledger.forget([stream])
            owners.pop(stream, None)
        else:
            is_own = owners.get(stream, replica) == replica
            if what == "s":
                is_own = is_own and stream not in untold[replica]
                refused = ledger.store(replica, {stream: b"x"}, now_ns)
                assert len(refused) == len({*refused})
                assert {*refused} == untold[replica] | (set() if is_own else {stream})
                untold[replica] = set()
            else:
                ledger.pass_on(replica, {stream: b"x"}, now_ns)
            if is_own:
                owners[stream] = replica if what == "s" else ""


async def test_stream_is_wanted_until_it_is_released(loop):
    """A stream is wanted as long as a claim waits for it, even if another claim of it was cancelled."""
    store = StreamStore(loop.clock)
    await store.claim("s", "a")
    gives_up, waits = (asyncio.create_task(store.claim("s", replica)) for replica in "bc")
    await asyncio.sleep(0)
    gives_up.cancel()

    assert await store.wanted("a") == ["s"]
    await store.pass_on("a", {"s": b"state"})
    assert (await waits).record == b"state"


async def test_stream_released_unasked_is_not_wanted(loop):
    """A stream that its owner releases before it hears of a claim is not wanted of it any more."""
    store = StreamStore(loop.clock)
    await store.claim("s", "a")
    claiming = asyncio.create_task(store.claim("s", "b"))
    await asyncio.sleep(0)

    await store.pass_on("a", {"s": b"state"})
    assert (await claiming).record == b"state"
    assert await store.wanted("a") == []


async def test_moved_stream_gives_equal_results(loop):
    """A stream that moves has the results of one that stays, even if its previous step is still running."""
    reference = Reference()
    async with Fleet(loop, duration_s=0.02) as fleet:
        for number in range(12):
            assert await fleet.step("ab"[number % 3 % 2], number) == reference(number)
        running = asyncio.create_task(fleet.step("a", 5))
        await asyncio.sleep(0.001)
        assert await fleet.step("b", 6) == (reference(5), reference(6))[1]
        assert await running > 0
        moves = await fleet.store.statistics()
    assert (moves.moved, moves.resumed, moves.restarted) == (9, 0, 0)
    assert (moves.streams, dict(moves.owners)) == (1, {"b": 1})


async def test_stop_sends_stream_states_to_the_store(loop):
    """After its replica has stopped, a stream continues on another replica."""
    reference = Reference()
    async with Fleet(loop) as fleet:
        assert await fleet.step("a", 3) == reference(3)
        await fleet.stacks["a"].stop()
        assert await fleet.step("b", 4) == reference(4)


async def test_a_stop_completes_the_move_that_has_begun(loop):
    """A replica that stops while another one claims a stream loses no step of it."""
    reference = Reference()

    class Slow(StreamStore):
        async def pass_on(self, replica, records):
            await asyncio.sleep(0.1)
            await super().pass_on(replica, records)

    async with Fleet(loop, store=Slow) as fleet:
        assert await fleet.step("a", 3) == reference(3)
        claimed = asyncio.create_task(fleet.step("b", 4))
        await asyncio.sleep(0.05)
        await fleet.stacks["a"].stop()
        assert await claimed == reference(4)
        moves = await fleet.store.statistics()
    assert (moves.moved, moves.resumed, moves.restarted) == (1, 0, 0)


@pytest.mark.parametrize("turns", range(6))
async def test_start_repeats_claims_cancelled_by_the_stop(loop, turns):
    """A restarted replica repeats a claim that its stop cancelled, whether the claim had begun or not."""
    reference = Reference()

    class Slow(StreamStore):
        async def claim(self, stream_id, replica):
            await asyncio.sleep(0.0 if replica == "a" else 0.1)
            return await super().claim(stream_id, replica)

    async with Fleet(loop, store=Slow) as fleet:
        assert await fleet.step("a", 3) == reference(3)
        claiming = asyncio.create_task(fleet.step("b", 4))
        for _ in range(turns):
            await asyncio.sleep(0)
        await fleet.stacks["b"].stop(drain=False)
        await asyncio.wait([claiming])
        await fleet.stacks["b"].start()

        assert await fleet.step("b", 5) == reference(5)


async def test_cancelled_stop_stops_inner_stack(loop):
    """A replica's stop that is cancelled stops the inner stack and ends the replica's tasks; it can start again."""
    async with Fleet(loop) as fleet:
        replica = fleet.stacks["a"]
        (moving,) = replica.layers
        for turns in range(1, 20):
            stopping = asyncio.create_task(replica.stop())
            for _ in range(turns):
                await asyncio.sleep(0)
            stopping.cancel()
            await asyncio.wait([stopping])
            assert not replica.ready
            assert not moving.inner.ready
            assert not moving._tasks
            await replica.start()


async def test_busy_owner_has_time_to_send_its_state(loop):
    """An owner on a busy machine, which sends a state late but keeps calling the store, is not taken for dead."""
    reference = Reference()

    class Busy(StreamStore):
        async def pass_on(self, replica, records):
            await asyncio.sleep(1.2)
            await super().pass_on(replica, records)

    async with Fleet(loop, store=Busy) as fleet:
        for x in (1, 2, 3):
            assert await fleet.step("a", x) == reference(x)
        assert await fleet.step("b", 4, timeout_s=3.0) == reference(4)
        moves = await fleet.store.statistics()
        assert not fleet.store._wanted.get("a")
        assert not fleet.store._releases
    assert (moves.moved, moves.resumed, moves.restarted) == (1, 0, 0)


async def test_waiting_replicas_get_stream_in_turn(loop):
    """Replicas that wait for a dead one get its stream in turn.

    The first gets the snapshot, and the second gets the state that the first passes on.
    """
    store = StreamStore(loop.clock)
    await store.claim("s", "dead")
    await store.store("dead", {"s": b"snapshot"})
    await asyncio.sleep(0.2)
    first = asyncio.create_task(store.claim("s", "a"))
    await asyncio.sleep(0.3)
    second = asyncio.create_task(store.claim("s", "b"))

    assert (await first).record == b"snapshot"
    assert await store.wanted("a") == ["s"]
    await store.pass_on("a", {"s": b"one step later"})

    assert (await second).record == b"one step later"
    moves = await store.statistics()
    assert (moves.moved, moves.resumed, moves.restarted, moves.owners) == (1, 1, 0, {"b": 1})


async def test_long_step_holds_up_no_other_stream(loop):
    """A step that takes long does not hold up other streams."""
    reference, takes_s = Reference(), [0.0]
    async with Fleet(loop, duration_s=lambda _size: takes_s[0]) as fleet:
        assert await fleet.step("a", 1) == reference(1)
        takes_s[0] = 1.3
        long = asyncio.create_task(fleet.step("a", 5, "long", timeout_s=3.0))
        await asyncio.sleep(0.001)
        takes_s[0] = 0.0
        moved = asyncio.create_task(fleet.step("b", 6, "long", timeout_s=3.0))
        await asyncio.sleep(0.001)
        began_ns = loop.clock()
        assert await fleet.step("b", 2) == reference(2)
        assert loop.clock() - began_ns < 100 * MS
        of_long = Reference()
        assert (await long, await moved) == (of_long(5), of_long(6))
        moves = await fleet.store.statistics()
    assert (moves.moved, moves.resumed, moves.restarted) == (2, 0, 0)


async def test_failed_move_during_stop_leaves_snapshot(loop, caplog):
    """A stop leaves the snapshot of a stream whose state could not be moved.

    The move has begun and fails while its replica stops, so the stream continues from the snapshot in the store.
    """
    reference = Reference()

    class FailsOnce(StreamStore):
        failures = 0

        async def pass_on(self, replica, records):
            await asyncio.sleep(0.1)
            if not self.failures:
                self.failures += 1
                raise OSError("the node of the store is gone for a moment")
            await super().pass_on(replica, records)

    async with Fleet(loop, store=FailsOnce) as fleet:
        assert await fleet.step("a", 1) == reference(1)
        await asyncio.sleep(0.6)
        claimed = asyncio.create_task(fleet.step("b", 2, timeout_s=3.0))
        await asyncio.sleep(0.05)
        await fleet.stacks["a"].stop()
        assert await claimed == reference(2)
        moves = await fleet.store.statistics()
    assert (moves.moved, moves.resumed, moves.restarted) == (0, 1, 0)
    assert "1 streams were not moved" in caplog.text


async def test_lost_replica_costs_steps_after_its_snapshot(loop):
    """A lost replica costs the steps after its last snapshot, which is at most 1.5 seconds old when it is used."""
    reference, behind = Reference(), Reference()
    async with Fleet(loop) as fleet:
        for x in (1, 2):
            assert await fleet.step("a", x) == reference(x)
            behind(x)
        await asyncio.sleep(0.6)
        await fleet.step("a", 3)
        moving = fleet.stacks["a"].layers[0]
        for task in moving._tasks:
            task.cancel()  # as if its process were gone
        await asyncio.sleep(0.3)
        assert await fleet.step("b", 4, timeout_s=3.0) == behind(4)
        moves = await fleet.store.statistics()
        assert not fleet.store._wanted.get("a")
    assert (moves.moved, moves.resumed) == (0, 1)
    assert 0 < moves.oldest_snapshot_s <= 1.5


async def test_replica_taken_for_dead_drops_its_streams(loop):
    """A replica that was taken for dead drops the streams that another replica has taken."""
    async with Fleet(loop) as fleet:
        await fleet.step("a", 1)
        await asyncio.sleep(0.6)
        fleet.store._ledger.take("s", "b", "a", loop.clock())
        await fleet.step("a", 2)
        await asyncio.sleep(0.6)
        with pytest.raises(si.InvalidInput):
            fleet.stacks["a"].layers[0].export_state("s")


async def test_reset_and_end_apply_at_any_replica(loop):
    async with Fleet(loop) as fleet:
        await fleet.step("a", 1)
        there = adapt(fleet.stacks["b"]).capabilities().stream_states
        there.reset_stream("s")
        assert await fleet.step("b", 2) == Reference()(2)
        there.end_stream("s")
        await asyncio.sleep(0.01)
        assert (await fleet.store.statistics()).streams == 0
        assert await fleet.step("a", 3) == Reference()(3)


async def test_a_stream_that_has_ended_begins_again(loop):
    """A stream begins again at once on the replica that ended it, and on any replica after the end was awaited."""
    async with Fleet(loop) as fleet:
        await fleet.step("a", 1)
        adapt(fleet.stacks["b"]).capabilities().stream_states.end_stream("s")
        assert await fleet.step("b", 2) == Reference()(2)

        await fleet.step("a", 3)
        await StackReplica.end_stream(SimpleNamespace(_service=fleet.stacks["b"]), "s")
        assert await fleet.step("a", 4) == Reference()(4)
        moves = await fleet.store.statistics()
    assert (moves.moved, moves.resumed, moves.restarted) == (3, 0, 0)


async def test_stream_end_releases_waiting_requests(loop):
    """The end of a stream releases requests that wait for its state, because its owner has none to send."""

    class Slow(StreamStore):
        async def forget(self, stream_ids):
            await asyncio.sleep(0.1)
            await super().forget(stream_ids)

    async with Fleet(loop, store=Slow) as fleet:
        await fleet.step("a", 1)
        adapt(fleet.stacks["a"]).capabilities().stream_states.end_stream("s")
        began_ns = loop.clock()
        assert await fleet.step("b", 2, timeout_s=3.0) == Reference()(2)
        assert loop.clock() - began_ns < 200 * MS


async def test_rejected_snapshot_keeps_restarted_stream(loop):
    """A rejected snapshot does not end a stream that has started again in the meantime."""

    class Slow(StreamStore):
        async def store(self, replica, records):
            refused = await super().store(replica, records)
            await asyncio.sleep(0.2)
            return refused

    reference = Reference()
    async with Fleet(loop, store=Slow) as fleet:
        await fleet.step("a", 1)
        fleet.store._ledger.take("s", "b", "a", loop.clock())
        await asyncio.sleep(0.6)
        adapt(fleet.stacks["a"]).capabilities().stream_states.end_stream("s")
        assert await fleet.step("a", 2) == reference(2)
        await asyncio.sleep(0.2)
        assert await fleet.step("a", 3) == reference(3)


async def test_reset_holds_while_the_stream_is_claimed(loop):
    """A reset takes effect even while a claim is in flight whose request has ended at its deadline."""

    class Slow(StreamStore):
        async def claim(self, stream_id, replica):
            await asyncio.sleep(0.2)
            return await super().claim(stream_id, replica)

    async with Fleet(loop, store=Slow) as fleet:
        await fleet.step("a", 7)
        with pytest.raises(si.DeadlineExceeded):
            await fleet.step("b", 1, timeout_s=0.05)
        adapt(fleet.stacks["b"]).capabilities().stream_states.reset_stream("s")

        assert await fleet.step("b", 2) == Reference()(2)


async def test_hanging_store_costs_state_but_no_request(loop, caplog):
    """A store that does not respond costs a stream its state, but no request that has time to wait."""

    class Hanging(StreamStore):
        async def claim(self, stream_id, replica):
            await asyncio.sleep(3600)

    async with Fleet(loop, "a") as fleet:
        fleet.stacks["a"].layers[0]._store = Hanging(loop.clock)
        with pytest.raises(si.DeadlineExceeded):
            await fleet.step("a", 1, "anna")
        assert await fleet.step("a", 2, "anna", timeout_s=3.0) == Reference()(2)
    assert "stream 'anna' starts without the state" in caplog.text
    lines = [si.telemetry.JsonLines().format(record) for record in caplog.records]
    assert "starts without the state" in "".join(lines)
    assert "anna" not in "".join(lines), "they have nothing that a request brought"


async def test_requests_without_a_stream_reach_the_model(loop):
    async with Fleet(loop, "a") as fleet:
        with pytest.raises(si.InvalidInput, match="stream"):
            await fleet.stacks["a"]({"x": EXAMPLE["x"]})


async def test_replica_taken_for_dead_claims_streams_again(loop):
    """A replica that was taken for dead claims its streams again, because another replica may have continued them."""
    reference = Reference()
    async with Fleet(loop) as fleet:
        assert await fleet.step("a", 1) == reference(1)
        await asyncio.sleep(0.6)
        pause(fleet.stacks["a"].layers[0])
        await asyncio.sleep(2.0)
        assert await fleet.step("b", 2) == reference(2)
        go_on(fleet.stacks["a"].layers[0])
        await asyncio.sleep(0.6)
        assert await fleet.step("a", 3) == reference(3)
        assert await fleet.step("b", 4) == reference(4)
        moves = await fleet.store.statistics()
    assert (moves.moved, moves.resumed, moves.restarted) == (2, 1, 0)


async def test_old_state_hides_no_state_of_another_replica(loop):
    """A state that a replica has from long ago does not hide the newer state of another replica."""
    reference = Reference()
    async with Fleet(loop) as fleet:
        await fleet.step("a", 1)
        await asyncio.sleep(IDLE_NS / 1e9 + 2.0)
        assert await fleet.step("b", 2) == reference(2)
        assert await fleet.step("a", 3) == reference(3)
        assert await fleet.step("b", 4) == reference(4)
