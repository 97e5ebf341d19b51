"""Churn: viewers that open and leave live streams or fail, with sources that stall, jump in time, raise or end."""

import asyncio
import ctypes
import gc
import os
import random
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import streaminfer as si
from streaminfer.streams import Block, EveryNth, Frame, LatestOnly, StreamSession

__all__ = ["Churned", "churn", "resources"]


async def unreliable(chance: random.Random) -> AsyncIterator[Frame]:
    """Yield frames of a source that stalls, jumps in time, repeats instants, changes its resolution, raises or ends."""
    shape, offset_ns, captured_ns = (64, 64), 0, 0
    for _ in range(chance.choice([0, 3, 20, 60])):
        await asyncio.sleep(chance.choice([0.0, 0.05, 0.1, 0.3]))
        event = chance.random()
        if event < 0.02:
            await asyncio.sleep(chance.choice([2.0, 1e6]))
        elif event < 0.04:
            offset_ns = chance.choice([-(10**12), 0, 10**12])
        elif event < 0.06:
            shape = chance.choice([(64, 64), (96, 64)])
        elif event < 0.07:
            raise OSError("unplugged")
        elif event > 0.1:
            captured_ns = time.monotonic_ns() + offset_ns
        yield Frame(np.ones(shape, np.float32), captured_ns, discontinuity=event > 0.97)


async def viewer(session: StreamSession, chance: random.Random, end_s: float) -> None:
    while time.monotonic() < end_s:
        await asyncio.sleep(chance.random() * 8)
        left = chance.choice([1, 5, 1000])
        try:
            async with asyncio.timeout(chance.choice([0.5, 5.0, 30.0])):
                async for _ in session(unreliable(chance)):
                    left -= 1
                    if not left:
                        break
        except (OSError, TimeoutError):
            pass


def resources() -> dict[str, int]:
    """Return the threads, descriptors and memory of this process."""
    gc.collect()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for many threads is no leak
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "threads": threading.active_count(),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "MiB resident": pages * os.sysconf("SC_PAGESIZE") >> 20,
    }


class Churned(NamedTuple):
    """Counts of a churn.

    Attributes:
        streams: streams that ended.
        frames: frames that sessions received.
        uncounted: frames that were not counted exactly once.
        tasks: tasks of sessions that remained after all sessions were closed.
    """

    streams: int
    frames: int
    uncounted: int
    tasks: int


async def churn(seconds: float, count: int) -> Churned:
    """Let viewers open, leave and fail streams until the time is up and the last one has left."""
    chance = random.Random(1)
    model = si.CpuBackend(lambda x: x.mean(axis=(1, 2)) if chance.random() > 0.02 else 1 / 0)
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=32), model) as service:
        sessions = [
            StreamSession(service, policy=LatestOnly(), max_age_s=0.2),
            StreamSession(service, policy=Block(), max_in_flight=2),
            StreamSession(service, policy=EveryNth(2), max_age_s=1.0),
        ]
        end_s = time.monotonic() + seconds
        await asyncio.gather(*(viewer(sessions[number % 3], chance, end_s) for number in range(count)))
        for session in sessions:
            await session.aclose()
        tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("streaminfer-s")]
        seen = [session.statistics() for session in sessions]
    return Churned(
        streams=sum(it.ended_streams for it in seen),
        frames=sum(it.received for it in seen),
        uncounted=sum(abs(it.received - it.delivered - it.failed - sum(it.dropped.values())) for it in seen),
        tasks=len(tasks),
    )
