"""Both ways at the same offered loads, in turn: share of chunks on time and p99, repeated.

*Design.* The loads are fixed multiples of one calibrated rate, and both ways get the same microphones at each. A repeat
starts one service per way and takes the loads in ascending order. At each load both ways run one after the other, and
their order alternates from load to load and from repeat to repeat. Other activity on the machine therefore affects both
ways alike.

The first loads at which a way misses its objective decide its limit. They are measured twice, and the better window
counts, because other processes can only make chunks late.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence

import streaminfer as si
from demo.audio import CHUNK_S, Clip
from demo.by_hand import DetectorByHand
from demo.comparison import FORGIVEN
from demo.findings import ENOUGH, Curve, LoadPoint, Sweep
from demo.machine import CpuClock
from demo.microphones import Microphones
from demo.services import Way
from demo.trials import Stage

__all__ = ["LOADS", "WINDOW_S", "measure_load", "sweep_loads"]

LOADS = (0.25, 0.5, 0.8, 1.0, 1.25, 1.6, 2.0, 2.8, 4.0)
"""Times the calibrated rate."""
WINDOW_S = 0.25
SETTLE_S = 0.1
"""Seconds from the start of the microphones to the window: the start of hundreds of streams is not measured."""
MINIMUM_REPEATS = 3
MAXIMUM_REPEATS = 7


async def measure_load(
    detector: si.Stack | DetectorByHand, clip: Clip, load: float, rate: float, seconds: float
) -> LoadPoint:
    """Measure one offered load with new microphones.

    Args:
        detector: voice detector.
        clip: clip that the microphones play.
        load: offered load, times ``rate``.
        rate: chunks per second.
        seconds: length of the window.
    """
    microphones = Microphones(detector, clip)
    microphones.grow_to(max(1, round(load * rate * CHUNK_S)))
    await asyncio.sleep(SETTLE_S)
    meter = await microphones.live.measure(seconds)
    await microphones.stop()
    return LoadPoint(load, len(microphones.heard), meter.share_on_time, meter.quantile_s(0.99))


async def sweep_loads(
    stage: Stage,
    ways: tuple[Way, Way],
    rate: float,
    *,
    loads: Sequence[float] = LOADS,
    seconds: float = WINDOW_S,
    repeats: int | None = None,
    end_s: float = 0.0,
    now_s: Callable[[], float] = time.monotonic,
) -> Sweep:
    """Drive both ways in turn at every load, several times.

    Args:
        stage: clip that the microphones play.
        ways: batched and unbatched.
        rate: calibrated rate in chunks per second.
        loads: offered loads, ascending, times ``rate``.
        seconds: length of a window.
        repeats: number of repeats; ``None`` means three, and more while another is expected to finish by ``end_s``.
        end_s: an instant on the clock ``now_s``.
        now_s: monotonic seconds.
    """
    batched, unbatched = (Curve(way, []) for way in ways)
    cpu = CpuClock("")
    for number in itertools.count():
        began_s = now_s()
        await _repeat(stage, (batched, unbatched), rate, loads, seconds, number)
        done = number + 1
        took_s = now_s() - began_s
        if repeats is not None:
            if done >= repeats:
                break
        elif done >= MAXIMUM_REPEATS or (done >= MINIMUM_REPEATS and now_s() + took_s > end_s):
            break
    return Sweep(rate, batched, unbatched, cpu.read())


async def _repeat(
    stage: Stage, curves: Sequence[Curve], rate: float, loads: Sequence[float], seconds: float, number: int
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        detectors = [stage.make_detector(curve.way) for curve in curves]
        for detector in detectors:
            await stack.enter_async_context(detector)
        for curve in curves:
            curve.repeats.append([])
        missed = dict.fromkeys((curve.way for curve in curves), 0)
        for place, load in enumerate(loads):
            turns = list(zip(curves, detectors, strict=True))
            for curve, detector in reversed(turns) if (number + place) % 2 else turns:
                point = await measure_load(detector, stage.clip, load, rate, seconds)
                if point.share_on_time < ENOUGH and missed[curve.way] <= FORGIVEN:
                    again = await measure_load(detector, stage.clip, load, rate, seconds)
                    point = max(point, again, key=lambda one: one.share_on_time)
                    missed[curve.way] += point.share_on_time < ENOUGH
                curve.repeats[-1].append(point)
                stage.say(
                    f"repeat {number + 1}, {curve.way.name}, {load:g}×: {point.microphones} microphones, "
                    f"{point.share_on_time:.1%} of chunks on time"
                )
