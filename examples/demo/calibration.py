"""Calibration: chunks a second of each unbatched way on this machine, and which of them is the baseline."""

import asyncio
import contextlib
from collections.abc import Mapping

import streaminfer as si
from demo.audio import Clip
from demo.load_sweep import PATIENCE_NS, measure_load
from demo.services import UNBATCHED, Way
from demo.trials import Stage

__all__ = ["choose_baseline", "measure_rates", "saturation"]

ROUNDS = 3
"""Each way's best round counts: whatever else runs on the machine can only lower a round."""
CANDIDATES = 3
CANDIDATE_LOADS = (0.5, 0.63, 0.8)
"""Times the rate of the fastest way: the highest rate with a full queue is not always the highest load held on time."""
SATURATING_CALLERS = 48


async def saturation(service: si.Stack, clip: Clip, seconds: float) -> float:
    """Return the chunks a second that a service completes for callers who send the next one after each response."""
    clock = service.clock
    end_ns = clock() + round(seconds * 1e9)
    completed = 0

    async def call_repeatedly(caller: int) -> None:
        nonlocal completed
        while clock() < end_ns:
            await service.call(si.Request(clip.chunks[0], deadline_ns=end_ns + PATIENCE_NS, stream_id=caller))
            completed += clock() <= end_ns

    async with asyncio.TaskGroup() as group:
        for caller in range(SATURATING_CALLERS):
            group.create_task(call_repeatedly(caller))
    return completed / seconds


async def measure_rates(stage: Stage, seconds: float) -> dict[Way, float]:
    """Return the saturated rate of each unbatched way in chunks a second, the fastest first; ways take turns.

    Args:
        stage: what is sent.
        seconds: length of each way's turn in a round.
    """
    rates = dict.fromkeys(UNBATCHED, 0.0)
    async with contextlib.AsyncExitStack() as stack:
        services = {way: await stack.enter_async_context(stage.make_service(way, None)) for way in UNBATCHED}
        for number in range(ROUNDS):
            for way, service in services.items():
                stage.say(f"calibrating, round {number + 1} of {ROUNDS}: {way.name}")
                rates[way] = max(rates[way], await saturation(service, stage.clip, seconds))
    return dict(sorted(rates.items(), key=lambda item: item[1], reverse=True))


async def choose_baseline(stage: Stage, rates: Mapping[Way, float], seconds: float) -> Way:
    """Return the way, of the fastest ones, that has most live chunks on time at loads around its limit.

    Args:
        stage: what the microphones play.
        rates: saturated rates, the fastest first.
        seconds: how long each load is measured.
    """
    candidates = list(rates)[:CANDIDATES]
    rate = rates[candidates[0]]
    on_time = dict.fromkeys(candidates, 0.0)
    for load in CANDIDATE_LOADS:
        for way in candidates:
            async with stage.make_service(way, None) as service:
                point = await measure_load(service, stage.clip, load, rate, seconds)
            on_time[way] += point.share_on_time
            stage.say(f"choosing the baseline: {way.name}, {point.microphones} microphones, {point.share_on_time:.1%}")
    return max(candidates, key=lambda way: on_time[way])
