"""Calibration: chunks per second of each unbatched way on this machine, and the choice of the baseline."""

import contextlib
from collections.abc import Awaitable, Mapping

from demo.by_hand import DetectorByHand
from demo.load_sweep import measure_load
from demo.meter import measure_capacity
from demo.services import UNBATCHED, Way
from demo.trials import Stage

__all__ = ["choose_baseline", "measure_rates"]

ROUNDS = 3
"""Each way's best round counts, because other processes on the machine can only slow a round down."""
CANDIDATES = 3
CANDIDATE_LOADS = (0.5, 0.63, 0.8)
"""Times the rate of the fastest way: the highest rate with a full queue is not always the highest load held on time."""
SATURATING_CALLERS = 48
PATIENCE_NS = 5_000_000_000
"""Deadline of chunks that are not live."""


async def measure_rates(stage: Stage, seconds: float) -> dict[Way, float]:
    """Return the saturated rate of each unbatched way in chunks a second, the fastest first; ways take turns.

    Args:
        stage: clip to send.
        seconds: length of each way's turn in a round.
    """
    rates = dict.fromkeys(UNBATCHED, 0.0)
    async with contextlib.AsyncExitStack() as stack:
        detectors = {way: await stack.enter_async_context(stage.make_by_hand(way)) for way in UNBATCHED}
        for number in range(ROUNDS):
            for way, detector in detectors.items():
                stage.say(f"calibrating, round {number + 1} of {ROUNDS}: {way.name}")

                def send(caller: int, _: int, detector: DetectorByHand = detector) -> Awaitable[float | None]:
                    return detector.detect(caller, stage.clip.chunks[0], detector.clock() + PATIENCE_NS)

                rate = await measure_capacity(send, SATURATING_CALLERS, seconds, detector.clock)
                rates[way] = max(rates[way], rate)
    return dict(sorted(rates.items(), key=lambda item: item[1], reverse=True))


async def choose_baseline(stage: Stage, rates: Mapping[Way, float], seconds: float) -> Way:
    """Return the way, among the fastest ones, with the most live chunks on time at loads around its limit.

    Args:
        stage: clip that the microphones play.
        rates: saturated rates, the fastest first.
        seconds: duration of the measurement at each load.
    """
    candidates = list(rates)[:CANDIDATES]
    rate = rates[candidates[0]]
    on_time = dict.fromkeys(candidates, 0.0)
    for load in CANDIDATE_LOADS:
        for way in candidates:
            async with stage.make_by_hand(way) as detector:
                point = await measure_load(detector, stage.clip, load, rate, seconds)
            on_time[way] += point.share_on_time
            stage.say(f"choosing the baseline: {way.name}, {point.microphones} microphones, {point.share_on_time:.1%}")
    return max(candidates, key=lambda way: on_time[way])
