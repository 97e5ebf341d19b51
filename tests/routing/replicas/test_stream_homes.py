"""The state of a stream moves with the stream from replica to replica."""

import asyncio
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest

import streaminfer as si
from streaminfer.protocols import Capabilities, Node, adapt
from streaminfer.routing.replicas import stream_homes
from streaminfer.streams import StatefulBackend


class Counter:
    """Recurrent model that counts the steps of each stream while it is up."""

    def __init__(self, max_streams):
        self.is_up = True
        inner = si.CpuBackend(self.count, executor="inline")
        initial = {"total": np.zeros(1)}
        self.backend = StatefulBackend(inner, state={"total": "next"}, initial=initial, max_streams=max_streams)

    def count(self, inputs):
        if not self.is_up:
            raise OSError("down")
        total = inputs["total"] + inputs["x"]
        return {"y": total, "next": total.copy()}


class Pair:
    """Two replicas; a step of a stream returns its replica and its count."""

    def __init__(self, loop, *, max_streams=100):
        self.models = {name: Counter(max_streams) for name in ("a", "b")}
        self.replicas = si.Replicas(
            *(
                si.Replica(name, si.Stack(si.AdaptiveBatcher(max_batch_size=2), model.backend, clock=loop.clock))
                for name, model in self.models.items()
            ),
            clock=loop.clock,
        )

    async def step(self, stream_id="s"):
        response = await self.replicas.call(si.Request({"x": np.ones(1)}, stream_id=stream_id))
        return response.source[0], float(response.outputs[0])

    def fill_other(self, home):
        """Give the only place at the other replica to another stream; return the other replica and its model."""
        away = "ba"["ab".index(home)]
        self.models[away].backend.import_state("other", self.models[home].backend.export_state("s"))
        return away, self.models[away].backend

    async def fail_until_moved(self, home):
        """Break a replica; return the first step elsewhere."""
        self.models[home].is_up = False
        while True:
            try:
                return await self.step()
            except si.BackendError:
                await asyncio.sleep(0.01)


@pytest.fixture
def states_of():
    return lambda pair: adapt(pair.replicas).capabilities().stream_states


class Stuck(Node):
    """Service that cannot export the state of a stream, or cannot import it.

    Args:
        fails: the method that fails.
    """

    def __init__(self, fails):
        self.fails = fails

    def capabilities(self):
        return Capabilities(stream_states=self)

    def export_state(self, stream_id):
        self.fail_at("export")
        return {}

    def import_state(self, stream_id, state):
        self.fail_at("import")

    def fail_at(self, method):
        if method == self.fails:
            raise OSError("disk full")

    async def call(self, request):
        return si.Response(request.inputs)


@pytest.mark.parametrize("method", ["export", "import"])
async def test_a_move_that_fails_leaves_nothing_in_flight(loop, method):
    """A move that fails ends its request, and the next request of the stream tries it again.

    It is no failure of the replica that would get the state, because the other one may be the cause.
    """
    replicas = si.Replicas(*(si.Replica(name, Stuck(method)) for name in ("a", "b")), clock=loop.clock)
    await replicas.start()
    home = (await replicas.call(si.Request(1.0, stream_id="s"))).source
    await replicas.remove(home)
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            await replicas.call(si.Request(1.0, stream_id="s"))
    assert [(it.attempts, it.failed, it.in_flight) for it in replicas.statistics().replicas] == [(2, 0, 0)]
    async with asyncio.timeout(10):
        await replicas.stop()


async def test_state_moves_with_stream_and_comes_back(loop, states_of):
    """The state of a stream moves with it to another replica and comes back with it."""
    pair = Pair(loop)
    async with si.Stack(pair.replicas, clock=loop.clock):
        (home, _), (_, count) = await pair.step(), await pair.step()
        away, moved = await pair.fail_until_moved(home)
        assert (away, count, moved) == ("ba"["ab".index(home)], 2.0, 3.0)
        assert states_of(pair).export_state("s") == pair.models[away].backend.export_state("s")
        with pytest.raises(si.InvalidInput):
            pair.models[home].backend.export_state("s")

        pair.models[home].is_up = True
        expected = moved
        while away != home:
            await asyncio.sleep(0.5)
            away, count = await pair.step()
            expected += 1.0
            assert count == expected


@pytest.mark.parametrize("drain", [True, False])
async def test_state_of_removed_replica_moves_with_streams(loop, drain):
    """The states move although their streams have no request in flight, like cameras between two frames."""
    pair = Pair(loop)
    async with si.Stack(pair.replicas, clock=loop.clock):
        homes = {number: (await pair.step(number))[0] for number in range(8)}

        await pair.replicas.remove("a", drain=drain)

        assert set(homes.values()) == {"a", "b"}
        assert [await pair.step(number) for number in range(8)] == [("b", 2.0)] * 8
        assert pair.replicas.statistics().lost_states == 0


async def test_stream_without_a_place_keeps_its_state(loop):
    """While its replica is out and the other one has no place, a stream is rejected; it continues at its replica."""
    pair = Pair(loop, max_streams=1)
    async with si.Stack(pair.replicas, clock=loop.clock):
        home, _ = await pair.step()
        pair.fill_other(home)
        for _ in range(2):
            with pytest.raises(si.Overloaded):
                await pair.fail_until_moved(home)
        away = next(it for it in pair.replicas.statistics().replicas if it.name != home)
        assert (away.attempts, away.rejected, away.in_flight) == (2, 2, 0)

        pair.models[home].is_up = True
        await asyncio.sleep(2.0)

        assert await pair.step() == (home, 2.0)


async def test_stream_moves_once_there_is_a_place(loop):
    """A stream that was rejected for want of a place takes its state with it as soon as there is one."""
    pair = Pair(loop, max_streams=1)
    async with si.Stack(pair.replicas, clock=loop.clock):
        home, _ = await pair.step()
        away, backend = pair.fill_other(home)
        with pytest.raises(si.Overloaded):
            await pair.fail_until_moved(home)

        backend.end_stream("other")

        assert await pair.step() == (away, 2.0)


async def test_removal_forgets_streams_without_a_place(loop):
    """The state of a stream without another place ends with the removed replica, and is counted as lost."""
    pair = Pair(loop, max_streams=1)
    async with si.Stack(pair.replicas, clock=loop.clock):
        home, _ = await pair.step()
        away, backend = pair.fill_other(home)

        await pair.replicas.remove(home)
        assert pair.replicas._homes._homes == {}  # no reference to the model of the removed replica
        assert pair.replicas.statistics().lost_states == 1

        backend.end_stream("other")
        assert await pair.step() == (away, 1.0)


async def test_stop_during_removal_moves_no_state(loop, monkeypatch):
    """A stop during a removal moves no state, because the state would stay in a model that has already stopped."""
    pair = Pair(loop)
    leaving = pair.models["a"].backend
    stop = leaving.stop

    async def stop_late(**options):
        await asyncio.sleep(1.0)
        await stop(**options)

    monkeypatch.setattr(leaving, "stop", stop_late)
    async with si.Stack(pair.replicas, clock=loop.clock):
        for number in range(64):
            await pair.step(number)
        removing = asyncio.ensure_future(pair.replicas.remove("a"))
        await asyncio.sleep(0)
    await removing

    assert [model.backend.statistics().streams for model in pair.models.values()] == [0, 0]


async def test_stream_without_state_to_move_starts_again(loop):
    """A stream without a state to move starts from its initial state, not from an older one at the new replica."""
    pair = Pair(loop)
    async with si.Stack(pair.replicas, clock=loop.clock):
        home, _ = await pair.step()
        old = pair.models[home].backend.export_state("s")
        pair.models["ba"["ab".index(home)]].backend.import_state("s", old)
        pair.models[home].backend.end_stream("s")

        assert (await pair.fail_until_moved(home))[1] == 1.0


async def test_import_takes_one_place(loop, states_of):
    """An imported state takes a place only at the replica that gets the stream's next request."""
    pair = Pair(loop)
    async with si.Stack(pair.replicas, clock=loop.clock):
        await pair.step("from")
        record = states_of(pair).export_state("from")
        states_of(pair).end_stream("from")

        for number in range(8):
            states_of(pair).import_state(number, record)

        assert sum(model.backend.statistics().streams for model in pair.models.values()) == 8
        homes = [await pair.step(number) for number in range(8)]
        assert {home for home, _ in homes} == {"a", "b"}
        assert {count for _, count in homes} == {2.0}


async def test_import_without_a_place_changes_nothing(loop, states_of):
    """An import that is rejected for want of a place at the next replica leaves the stream its state."""
    pair = Pair(loop, max_streams=1)
    async with si.Stack(pair.replicas, clock=loop.clock):
        home, _ = await pair.step()
        record = states_of(pair).export_state("s")
        await pair.step()
        pair.fill_other(home)
        with pytest.raises(si.Overloaded):
            await pair.fail_until_moved(home)

        with pytest.raises(si.Overloaded):
            states_of(pair).import_state("s", record)

        assert states_of(pair).export_state("s") == pair.models[home].backend.export_state("s") != record


async def test_import_moves_a_stream_from_its_home(loop, states_of):
    """An imported state replaces that of the replica which the stream is about to leave, and frees its place."""
    pair = Pair(loop)
    async with si.Stack(pair.replicas, clock=loop.clock):
        home, _ = await pair.step()
        record = states_of(pair).export_state("s")
        assert (await pair.step())[1] == 2.0
        pair.models[home].is_up = False
        for _ in range(5):
            with pytest.raises(si.BackendError):
                await pair.step()

        states_of(pair).import_state("s", record)

        assert pair.models[home].backend.statistics().streams == 0
        assert (await pair.step())[1] == 2.0


def test_import_needs_a_replica_with_states(loop):
    """A set whose next replica keeps no state rejects an import."""
    homes = stream_homes.StreamHomes(list, lambda _: None)
    with pytest.raises(si.InvalidInput, match="no replica keeps state of 's'"):
        homes.import_state("s", b"")


async def test_ended_stream_starts_again_without_its_past(loop, states_of):
    """A stream that has ended starts again from its initial state, and no entry for it is kept."""
    pair = Pair(loop)
    async with si.Stack(pair.replicas, clock=loop.clock):
        assert (await pair.step())[1] == 1.0
        states_of(pair).end_stream("s")
        assert pair.replicas._homes._homes == {}
        assert (await pair.step())[1] == 1.0


async def test_streams_never_ended_are_not_kept_for_good(loop, monkeypatch):
    """The set of replicas forgets the oldest streams, so that streams that are never ended do not accumulate."""
    monkeypatch.setattr(stream_homes, "_MOST_HOMES", 3)
    pair = Pair(loop)
    async with si.Stack(pair.replicas, clock=loop.clock):
        for number in range(6):
            assert (await pair.step(number))[1] == 1.0
        assert list(pair.replicas._homes._homes) == [3, 4, 5]
        assert isinstance(pair.replicas._homes._homes, OrderedDict)  # in a dict, finding the oldest gets slow
        assert (await pair.step(0))[1] == 2.0
        homes = pair.replicas._homes
        homes.import_state(5, homes.export_state(5))
        assert list(homes._homes) == [4, 5, 0]


class Leaving:
    """Homes of stream "s", with one step of it at a replica that is no longer listed, and none at the other one."""

    def __init__(self, loop):
        self.home, self.other = Counter(100).backend, Counter(100).backend
        for backend in (self.home, self.other):
            backend.bind_clock(loop.clock)
        self.handles = [SimpleNamespace(states=self.home), SimpleNamespace(states=self.other)]
        self.homes = stream_homes.StreamHomes(lambda: self.handles, lambda _: self.other)

    async def step(self, backend, stream_id="s"):
        request = si.Request({"x": np.ones(1)}, stream_id=stream_id)
        (output,) = await backend.infer(si.Batch({"x": np.ones((1, 1))}, [request]))
        return output.item()

    async def leave(self):
        self.homes.move("s", self.home)
        assert await self.step(self.home) == 1.0
        del self.handles[0]


async def test_reset_reaches_a_replica_that_leaves(loop):
    """A stream that is reset while its replica leaves starts again at the next replica."""
    leaving = Leaving(loop)
    await leaving.leave()

    leaving.homes.reset_stream("s")
    leaving.homes.move("s", leaving.other)

    assert await leaving.step(leaving.other) == 1.0


async def test_end_reaches_a_replica_that_leaves(loop):
    leaving = Leaving(loop)
    await leaving.leave()

    leaving.homes.end_stream("s")

    assert leaving.home.statistics().streams == 0


async def test_import_outlasts_a_replica_that_leaves(loop):
    """A state that is imported while the stream's replica leaves is not replaced by that replica's own."""
    leaving = Leaving(loop)
    await leaving.leave()
    for count in (1.0, 2.0, 3.0):
        assert await leaving.step(leaving.home, "t") == count

    leaving.homes.import_state("s", leaving.home.export_state("t"))
    leaving.homes.move("s", leaving.other)

    assert await leaving.step(leaving.other) == 4.0
