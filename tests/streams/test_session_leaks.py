"""A minute in which a thousand streams open, feed, fail and close at random, and leave nothing behind."""

import asyncio
import gc
import random
import threading
from pathlib import Path

import numpy as np
from live_sources import States, add_up, others

import streaminfer as si
from streaminfer.streams import Block, EveryNth, Frame, LatestOnly, StreamSession
from streaminfer.streams._live_stream_cy import Stream
from streaminfer.streams._stream_cy import StreamState
from streaminfer.testing import ScriptedBackend, run

STREAMS = 1000
MINUTE_S = 60.0


def count_descriptors():
    """Return the number of open descriptors of this process; 0 if the system does not list them."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def live_streams():
    """Return the identities of the streams in memory, those of other tests included."""
    return {id(thing) for thing in gc.get_objects() if issubclass(type(thing), (Stream, StreamState))}


class Unreliable:
    """Source that stalls, jumps in time, repeats instants, changes its resolution, raises, or ends in the middle."""

    open = 0

    def __init__(self, loop, chance):
        self.loop, self.chance = loop, chance

    async def __aiter__(self):
        Unreliable.open += 1
        chance, shape, offset_ns, captured_ns = self.chance, (4,), 0, 0
        try:
            for _ in range(chance.choice([0, 3, 20, 60])):
                await asyncio.sleep(chance.choice([0.0, 0.05, 0.1, 0.3]))
                event = chance.random()
                if event < 0.02:
                    await asyncio.sleep(chance.choice([2.0, 1e6]))  # stalls, perhaps for good
                elif event < 0.04:
                    offset_ns = chance.choice([-(10**12), 0, 10**12])
                elif event < 0.06:
                    shape = chance.choice([(4,), (2, 3)])
                elif event < 0.07:
                    raise OSError("unplugged")
                elif event > 0.1:
                    captured_ns = self.loop.clock() + offset_ns  # otherwise the last instant is repeated
                yield Frame(np.ones(shape, np.float32), captured_ns, discontinuity=event > 0.97)
        finally:
            Unreliable.open -= 1


class Model(ScriptedBackend):
    """Recurrent model that fails now and then, and sometimes takes very long."""

    def __init__(self, chance):
        super().__init__(duration_s=lambda size: 30.0 if chance.random() < 0.001 else 0.002 + 0.0002 * size)
        self.chance = chance
        self.stream_states = States()

    async def infer(self, batch):
        results = await super().infer(batch)
        if self.chance.random() < 0.02:
            raise ValueError("broken")
        return [ValueError("row") if self.chance.random() < 0.01 else row for row in results]


async def consume(loop, session, chance, number, counts):
    """Open and consume streams one after the other for a minute, as one of a thousand consumers."""
    while loop.time() < MINUTE_S:
        await asyncio.sleep(chance.random() * 20)
        results = session(Unreliable(loop, chance))
        leaves_after = chance.choice([0, 1, 5, 1000])
        stays_s = chance.choice([0.5, 5.0, 30.0])
        try:
            async with asyncio.timeout(stays_s):
                async for result in results:
                    counts["delivered" if result.error is None else "failed"] += 1
                    leaves_after -= 1
                    if leaves_after <= 0:
                        break
        except (OSError, TimeoutError):
            pass
        if chance.random() < 0.5:
            await results.aclose()


def test_thousand_streams_leave_nothing_behind():
    """A thousand streams that open and end for a minute leave nothing behind.

    No task, thread, descriptor, source, model state or object is left, and each frame is counted.
    """
    chance = random.Random(16)
    gc.collect()
    streams = live_streams()
    threads, descriptors = set(threading.enumerate()), count_descriptors()  # those of other tests may end meanwhile
    opened = []

    async def main(loop):
        model = Model(chance)
        batcher = si.AdaptiveBatcher(max_batch_size=32, max_in_flight=2)
        async with si.Stack(batcher, model, clock=loop.clock) as service:
            sessions = [
                StreamSession(service, policy=policy, max_age_s=age_s, max_in_flight=most, resets_after_gap=most == 2)
                for policy, age_s, most in [
                    (LatestOnly(), 0.2, 1),
                    (Block(), None, 2),
                    (EveryNth(2), 1.0, 1),
                    (Block(2), 0.5, 1),
                ]
            ]
            counts = [{"delivered": 0, "failed": 0} for _ in sessions]
            await asyncio.gather(
                *(consume(loop, sessions[number % 4], chance, number, counts[number % 4]) for number in range(STREAMS))
            )
            for session in sessions:
                await session.aclose()
            assert not [task for task in others() if task.get_name().startswith("streaminfer-s")]
            assert Unreliable.open == 0
            for session, count in zip(sessions, counts, strict=True):
                statistics = session.statistics()
                assert add_up(statistics)
                assert statistics.waiting == statistics.in_flight == statistics.open_streams == 0
                assert (statistics.delivered, statistics.failed) == (count["delivered"], count["failed"])
                assert statistics.delivered > 1000
                opened.append(statistics.ended_streams)
            ended = [stream_id for call, stream_id in model.stream_states.calls if call == "end"]
            assert len(ended) == len(set(ended)) == sum(opened)
        assert not others()

    run(main)
    gc.collect()  # this collects abandoned iterators, and the next one the objects that they close
    gc.collect()
    assert sum(opened) > 3 * STREAMS
    assert set(threading.enumerate()) <= threads
    assert count_descriptors() <= descriptors
    assert live_streams() <= streams
