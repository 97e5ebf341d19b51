"""How many microphones does a service hold? A ramp finds a candidate, and only a hold of several seconds counts.

*Held* means: over the whole hold, at least 99 % of all chunks that were due were answered within 32 ms of being due;
lost chunks are not on time. The ramp adds microphones in steps until some steps in a row fail (one may be the machine's
fault); then a little less than the last good number has to hold. If it does not, fewer have to; if it does, more may,
until the time is up. Each hold is a fresh service with fresh microphones, and what is reported is the largest that
held, all of it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

import attrs
import numpy as np

import streaminfer as si
from demo.audio import CHUNK_S, SILENCE, Clip
from demo.budget import make_objective, watching
from demo.cameras import running_cameras
from demo.faces import FULL
from demo.findings import ENOUGH, Hold, Search, Step
from demo.machine import CpuClock, without_old_garbage
from demo.microphones import Microphones
from demo.services import UNBATCHED, Way, voice_service
from demo.video import Frames

__all__ = ["Stage", "hold", "rank_unbatched", "search"]

STEP_S = 0.5
SETTLE_S = 0.2
STEP_SHARE = 0.1
"""Microphones added by a step of the ramp, as a share of the estimate."""
STEP_DOWN = 0.94
"""What half a second of the ramp stood, or an earlier hold did not, is lowered to this share for the next hold."""
LAST_STEP_DOWN = 0.7
"""And to this one when there is time for one hold only: better a low number that holds than none."""
SATURATION_CALLERS = 48


@attrs.frozen(eq=False)
class Stage:
    """What every trial is given.

    Attributes:
        clip: what microphones play.
        frames: what cameras play.
        cameras: how many there are, in every trial.
        say: told what happens.
        make_service: builds the voice detector's stack, with an objective to keep or none.
    """

    clip: Clip
    frames: Frames | None
    cameras: int
    say: Callable[[str], None]
    make_service: Callable[[Way, Clip, si.SLO | None], si.Stack] = voice_service


async def saturation(service: si.Stack, clip: Clip, seconds: float) -> float:
    """Chunks a second that a service answers to callers who send the next one as soon as they have an answer."""
    clock = service.clock
    end_ns = clock() + round(seconds * 1e9)
    answered = 0

    async def call_again_and_again() -> None:
        nonlocal answered
        while clock() < end_ns:
            await service.call(si.Request({"input": clip.chunks[0], "state": SILENCE}))
            answered += clock() <= end_ns

    async with asyncio.TaskGroup() as group:
        for _ in range(SATURATION_CALLERS):
            group.create_task(call_again_and_again())
    return answered / seconds


async def rank_unbatched(stage: Stage, seconds: float = 0.5) -> dict[Way, float]:
    """How many chunks a second each unbatched way answers on this machine, saturated, the fastest first."""
    rates: dict[Way, float] = {}
    async with running_cameras(stage.frames, stage.cameras):
        for way in UNBATCHED:
            stage.say(f"looking for the best baseline: {way.name}")
            async with stage.make_service(way, stage.clip, None) as service:
                rates[way] = await saturation(service, stage.clip, seconds)
    return dict(sorted(rates.items(), key=lambda item: item[1], reverse=True))


async def ramp(stage: Stage, way: Way) -> list[Step]:
    """Adds microphones until three steps in a row are not on time: two of one number, and one of a larger number."""
    steps: list[Step] = []
    async with running_cameras(stage.frames, stage.cameras), stage.make_service(way, stage.clip, None) as service:
        # as many as it could serve if it were always busy: begin well below, and expect to end about there
        estimate = await saturation(service, stage.clip, STEP_S) * CHUNK_S
        microphones = Microphones(service, stage.clip)
        count = max(1, round(estimate * 6 * STEP_SHARE))
        failures = 0
        while failures < 3:
            microphones.grow_to(count)
            await asyncio.sleep(SETTLE_S)
            meter = await microphones.measure(STEP_S)
            steps.append(Step(count, meter.share_on_time, held=False))
            stage.say(f"{way.name}: {count} microphones, {meter.share_on_time:.1%} of chunks on time")
            if meter.share_on_time >= ENOUGH:
                failures = 0
            else:
                failures += 1
                # an overload does not pass by itself while nobody leaves: the next step begins with a fresh crowd
                await microphones.stop()
                microphones = Microphones(service, stage.clip)
            if failures != 1:
                count += max(1, round(estimate * STEP_SHARE))
        await microphones.stop()
    return steps


def highest(steps: list[Step]) -> float:
    """The largest number of microphones that was on time in a ramp; half of the first where none was."""
    good = [step.microphones for step in steps if step.share_on_time >= ENOUGH]
    return max(good, default=steps[0].microphones / 2)


async def hold(stage: Stage, way: Way, count: int, seconds: float, *, give_up: bool = False) -> Hold:
    """Keeps a number of microphones going.

    Args:
        stage: what to play.
        way: how to serve it.
        count: of microphones.
        seconds: how long.
        give_up: stop as soon as too many chunks have missed for the hold to count.
    """
    stage.say(f"{way.name}: holding {count} microphones for {seconds:g} s")
    most_missed = round(count * seconds / CHUNK_S * (1 - ENOUGH)) if give_up else None
    slo = make_objective(way.name, threshold_s=CHUNK_S, objective=ENOUGH, seconds=seconds)
    async with (
        running_cameras(stage.frames, stage.cameras) as cameras,
        stage.make_service(way, stage.clip, slo) as service,
        watching(slo) as watch,
    ):
        with without_old_garbage():
            microphones = Microphones(service, stage.clip)
            pictures = None if cameras is None else cameras.meter
            cpu = CpuClock(FULL.file)
            began_ns = service.clock()
            microphones.grow_to(count)
            await asyncio.sleep(
                SETTLE_S
            )  # as in the ramp: the start of hundreds of streams at once is not what is held
            chunks = await microphones.measure(seconds, most_missed=most_missed)
            use = cpu.read()
            took_s = (service.clock() - began_ns) / 1e9
            budget = watch.read()
            await microphones.stop()
        return Hold(
            way=way,
            microphones=count,
            seconds=took_s,
            began_ns=began_ns,
            chunks=chunks,
            pictures=pictures,
            cpu=use,
            voice=service.statistics()["Telemetry"],
            budget=budget,
            heard=[np.frombuffer(heard, np.float32) for heard in microphones.heard],
            faces={} if cameras is None else {place: list(faces) for place, faces in sorted(cameras.faces.items())},
        )


async def search(stage: Stage, ways: Sequence[Way], seconds: float, budget_s: float) -> Search:
    """The most microphones that a service holds, as far as the time allows to find out.

    Args:
        stage: what to play.
        ways: how to serve it; of several, the one is held whose ramp went highest.
        seconds: how long a number has to hold.
        budget_s: no further hold begins that would end later than this, but for one where nothing has held yet.
    """
    end_s = time.monotonic() + budget_s
    ramps = {way: await ramp(stage, way) for way in ways}
    way = max(ramps, key=lambda way: highest(ramps[way]))
    steps = ramps[way]
    count = max(1, int(STEP_DOWN * highest(steps)))
    best: Hold | None = None
    too_many: int | None = None
    last_chance = False
    while True:
        last = await hold(stage, way, count, seconds, give_up=True)
        steps.append(Step(count, last.chunks.share_on_time, held=True))
        stage.say(f"{way.name}: {count} microphones, {last.chunks.share_on_time:.2%} on time over {last.seconds:.1f} s")
        if last.enough:
            best = last
        else:
            too_many = count
        left_s = end_s - time.monotonic()
        if best is None:
            count = max(1, int(count * (STEP_DOWN if left_s >= 2 * seconds else LAST_STEP_DOWN)))
        else:
            count = round(best.microphones / STEP_DOWN if too_many is None else (best.microphones + too_many) / 2)
        if count in {best and best.microphones, too_many} or (left_s < seconds and (best is not None or last_chance)):
            return Search(steps, best or last)
        last_chance = left_s < seconds
