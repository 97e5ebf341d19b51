"""Order of steps, effects of failed steps, and sequence ids of streams; without a server."""

import asyncio
import contextlib

import pytest

from streaminfer.backends.triton.sequences import LostSequences, NotSent, SequenceLost, Sequences
from streaminfer.errors import BackendError, DeadlineExceeded, Overloaded


def sequences(kind="TYPE_UINT64", idle_s=5.0, max_streams=100):
    return Sequences(kind, idle_s, max_streams)


async def step(all_, stream, error=None, **more):
    async with all_.step(stream, more.pop("now_ns", 0), **more) as found:
        said = found.parameters(end=more.get("end", False))
        await asyncio.sleep(0)
        if error is not None:
            raise error
    return said


def test_a_sequence_starts_once_and_ends_once():
    async def scenario():
        all_ = sequences()
        said = [await step(all_, "a"), await step(all_, "a"), await step(all_, "a", end=True), await step(all_, "a")]
        flags = [(one["sequence_start"], one["sequence_end"]) for one in said]
        assert flags == [(True, False), (False, False), (False, True), (True, False)]
        ids = [one["sequence_id"] for one in said]
        assert ids[0] == ids[1] == ids[2] != ids[3]
        assert (await step(all_, "b"))["sequence_id"] not in ids

    asyncio.run(scenario())


def test_steps_run_in_order_and_streams_in_parallel():
    """Steps of one stream run one at a time and in order, while other streams run beside them."""

    async def scenario():
        all_ = sequences()
        log = []

        async def one(stream, number):
            async with all_.step(stream, 0):
                log.append((stream, number, "in"))
                await asyncio.sleep(0)
                log.append((stream, number, "out"))

        await asyncio.gather(*(one(stream, number) for number in range(4) for stream in "ab"))
        for stream in "ab":
            mine = [entry[1:] for entry in log if entry[0] == stream]
            assert mine == [(number, way) for number in range(4) for way in ("in", "out")]
        assert log[1][0] != log[0][0]

    asyncio.run(scenario())


def test_streams_keep_ids_when_description_changes():
    """Streams keep their ids when the model's description is read again.

    A server can report that it has forgotten a sequence; a sequence with a new id would begin silently.
    """

    async def scenario():
        all_ = sequences()
        before = await step(all_, "a")
        all_.update("TYPE_UINT64", 6.0)
        assert await step(all_, "a") == {**before, "sequence_start": False}
        all_.update("TYPE_STRING", 6.0)
        assert await step(all_, "a") == {**before, "sequence_start": False}
        assert (await step(all_, "b"))["sequence_id"].startswith("streaminfer-")

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [BackendError("x"), DeadlineExceeded("x"), asyncio.CancelledError(), KeyError("x")])
def test_failed_step_loses_sequence_for_queued_steps(error):
    """A failed step loses the sequence for the steps queued behind it; the next step starts a new one."""

    async def scenario():
        all_ = sequences()
        first = await step(all_, "a")
        ends = await asyncio.gather(
            step(all_, "a", error), step(all_, "a"), step(all_, "a"), step(all_, "b"), return_exceptions=True
        )
        assert isinstance(ends[0], type(error))
        assert [type(one) for one in ends[1:3]] == [SequenceLost, SequenceLost]
        assert ends[3]["sequence_start"]
        anew = await step(all_, "a")
        assert anew["sequence_start"]
        assert anew["sequence_id"] != first["sequence_id"]

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [Overloaded("full"), NotSent(DeadlineExceeded("late"))])
def test_step_that_was_not_sent_keeps_sequence(error):
    """A failed step that cannot have reached the model does not change its sequence."""

    async def scenario():
        all_ = sequences()
        first = await step(all_, "a")
        ends = await asyncio.gather(step(all_, "a", error), step(all_, "a"), return_exceptions=True)
        assert isinstance(ends[0], (Overloaded, DeadlineExceeded))
        assert ends[1] == {**first, "sequence_start": False}

    asyncio.run(scenario())


def test_step_cancelled_while_queued_keeps_sequence():
    """A step that is cancelled while it is queued is skipped, and the sequence continues."""

    async def scenario():
        all_ = sequences()
        go = asyncio.Event()

        async def slow():
            async with all_.step("a", 0):
                await go.wait()

        running = asyncio.create_task(slow())
        waiting = asyncio.create_task(step(all_, "a"))
        behind = asyncio.create_task(step(all_, "a"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        go.set()
        await running
        assert not (await behind)["sequence_start"]
        assert waiting.cancelled()

    asyncio.run(scenario())


def test_idle_streams_make_room_for_new_ones():
    """Streams without a sequence are not stored, and a full table evicts only streams that are idle."""

    async def scenario():
        all_ = sequences(idle_s=1.0, max_streams=2)
        await step(all_, "a", end=True)
        with pytest.raises(BackendError):
            await step(all_, "a", BackendError("x"))
        assert len(all_) == 0
        assert not all_.knows("a")
        await step(all_, "a")
        await step(all_, "b", now_ns=9 * 10**8)
        assert all_.knows("a")
        with pytest.raises(Overloaded, match="max_streams=2"):
            await step(all_, "c", now_ns=10**9)
        await step(all_, "c", now_ns=10**9 + 1)
        assert not all_.knows("a")
        assert all_.knows("b")

    asyncio.run(scenario())


class Looks(dict):
    """Table of streams that counts the streams that are looked at."""

    count = 0

    def items(self):
        for item in super().items():
            self.count += 1
            yield item


def test_full_stream_table_is_not_scanned():
    """For a place in a full table of streams, only the stream that was idle for longest is looked at."""

    async def scenario():
        all_ = sequences(idle_s=1.0, max_streams=2)
        all_._streams = looks = Looks()
        await step(all_, "a", now_ns=1)
        await step(all_, "b", now_ns=10)
        for now_ns in range(20, 120):
            with pytest.raises(Overloaded):
                await step(all_, "c", now_ns=now_ns)
        assert looks.count == 100
        await step(all_, "c", now_ns=10**9 + 2)
        assert looks.count == 101
        assert set(looks) == {"b", "c"}

    asyncio.run(scenario())


@pytest.mark.parametrize(("kind", "bits"), [("TYPE_INT32", 31), ("TYPE_UINT32", 32), ("TYPE_UINT64", 63)])
def test_ids_fit_model_type_and_differ_between_clients(kind, bits):
    """Sequence ids fit the model's type, wrap around to 1, and differ between clients."""

    async def scenario():
        ids = [(await step(sequences(kind), "a"))["sequence_id"] for _ in range(20)]
        assert all(0 < one < 2**bits for one in ids)
        assert len(set(ids)) > 15
        edge = sequences(kind)
        edge._next = 2**edge._bits - 1
        assert [(await step(edge, name))["sequence_id"] for name in "abc"] == [2**edge._bits, 1, 2]

    asyncio.run(scenario())


def test_models_with_ids_of_text_get_text():
    assert asyncio.run(step(sequences("TYPE_STRING"), "a"))["sequence_id"].startswith("streaminfer-")


def test_lost_sequence_ids_are_reported_once():
    """The id of a lost sequence is reported once if the server may still know the sequence, else never."""

    async def scenario():
        lost = []
        all_ = Sequences("TYPE_UINT64", 5.0, 100, lost.append)
        for error in (Overloaded("full"), NotSent(DeadlineExceeded("late")), SequenceLost("forgotten"), None):
            with contextlib.suppress(Exception):
                await step(all_, "a", error)
        assert lost == []

        known = (await step(all_, "a"))["sequence_id"]
        await asyncio.gather(step(all_, "a", BackendError("x")), step(all_, "a"), return_exceptions=True)
        assert lost == [known]

        taken = (await step(all_, "a"))["sequence_id"]
        assert all_.lose("a", taken)
        assert not all_.lose("a", taken)
        assert lost == [known, taken]

    asyncio.run(scenario())


def test_lost_sequences_are_ended_at_the_server():
    """Lost sequences are ended at the same time; sequences lost meanwhile are ended next, and a stop waits for none."""

    async def scenario():
        begun, go_on = [], asyncio.Event()

        async def end(correlation):
            begun.append(correlation)
            await go_on.wait()

        lost = LostSequences(end)
        for correlation in (1, 2):
            lost.add(correlation)
        await settle()
        lost.add(3)
        await settle()
        assert begun == [1, 2]

        go_on.set()
        await settle()
        assert begun == [1, 2, 3]

        go_on.clear()
        lost.add(4)
        await settle()
        await lost.stop()
        assert begun == [1, 2, 3, 4]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())


async def settle():
    for _ in range(10):
        await asyncio.sleep(0)
