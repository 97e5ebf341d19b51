"""The buffer between a decoder and its reader."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams import Frame
from streaminfer.streams.sources.handoff import Handoff


async def rest(handoff):
    frames = []
    while len(handoff):
        frames.append(await handoff.get())
    return frames


@given(st.integers(1, 5), st.booleans(), st.lists(st.booleans()))
def test_oldest_frames_are_dropped_and_counted(capacity, contiguous, flags):
    """The newest frames stay, in order; dropped frames are counted.

    The first frame after dropped frames is a discontinuity if one of them was, or if frames are contiguous.
    """
    handoff = Handoff(capacity, drops=True, contiguous=contiguous)
    for number, flag in enumerate(flags):
        assert handoff.put(Frame(number, number, discontinuity=flag))
    frames = asyncio.run(rest(handoff))
    kept = flags[-capacity:]
    lost = flags[: len(flags) - len(kept)]
    assert [frame.inputs for frame in frames] == list(range(len(lost), len(flags)))
    assert handoff.dropped == len(lost)
    if frames:
        assert frames[0].discontinuity == (kept[0] or any(lost) or (contiguous and bool(lost)))
        assert [frame.discontinuity for frame in frames[1:]] == kept[1:]


def test_producer_waits_and_loses_nothing():
    """A full buffer blocks the producer's thread until the reader takes a frame."""
    handoff = Handoff(2, drops=False, contiguous=False)

    def produce():
        for number in range(100):
            assert handoff.put(Frame(number, number))
        handoff.finish()

    async def consume():
        frames = []
        with pytest.raises(StopAsyncIteration):
            while True:
                frames.append((await handoff.get()).inputs)
                assert len(handoff) <= 2
        return frames

    thread = threading.Thread(target=produce)
    thread.start()
    assert asyncio.run(consume()) == list(range(100))
    thread.join()
    assert handoff.dropped == 0


def test_close_frees_the_producer_and_drops_frames():
    """A close counts all waiting frames as dropped, also the frame of a blocked producer."""
    handoff = Handoff(1, drops=False, contiguous=False)
    handoff.put(Frame(0, 0))
    results = []
    thread = threading.Thread(target=lambda: results.append(handoff.put(Frame(1, 1))))
    thread.start()
    handoff.close()
    thread.join()
    assert results == [False]
    assert (len(handoff), handoff.dropped) == (0, 2)
    assert not handoff.put(Frame(2, 2))
    assert handoff.dropped == 3


def test_end_and_error_come_behind_the_frames():
    handoff = Handoff(3, drops=True, contiguous=False)
    handoff.put(Frame(0, 0))
    handoff.finish(OSError("gone"))
    handoff.finish()  # the first end counts

    async def read():
        assert (await handoff.get()).inputs == 0
        with pytest.raises(OSError, match="gone"):
            await handoff.get()
        with pytest.raises(StopAsyncIteration):
            await handoff.get()

    asyncio.run(read())


async def test_close_discards_the_producer_error(loop):
    """A closed buffer ends the iteration, although its producer failed before the close."""
    handoff = Handoff(3, drops=True, contiguous=False)
    handoff.finish(OSError("gone"))
    handoff.close()
    with pytest.raises(StopAsyncIteration):
        await handoff.get()


async def test_cancelled_reader_loses_nothing(loop):
    """A frame that arrives just before its reader is cancelled is for the next reader."""
    handoff = Handoff(3, drops=True, contiguous=False)
    reader = asyncio.ensure_future(handoff.get())
    await asyncio.sleep(0)
    handoff.put(Frame(0, 0))
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert (await handoff.get()).inputs == 0


async def test_second_reader_is_an_error(loop):
    handoff = Handoff(3, drops=True, contiguous=False)
    reader = asyncio.ensure_future(handoff.get())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="another task"):
        await handoff.get()
    handoff.finish()
    with pytest.raises(StopAsyncIteration):
        await reader
