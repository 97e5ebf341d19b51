"""Live streams: cost of a session, age of results under overload, fairness, a minute of churn.

    python benchmarks/run.py streams [--rounds 7] [--seconds 10] [--churn 60]

The baselines of each figure are the simplest programs that a user could write: a queue and a task per frame around the
same stack, a loop that takes the newest frames whenever the model is free, and first in, first out. Scenarios run in
virtual time with a scripted model, where they repeat exactly, in real time with a model that sleeps, and in real time
with BlazeFace, after a measurement of its capacity. The number of streams on time beside a greedy stream depends on the
capacity that is left for it: ``--rest`` is the share of the capacity that all other streams use.
"""

import argparse
import asyncio
import functools
import gc
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import attrs
import numpy as np
from _lib.figures import Figure
from _lib.stream_churn import churn, resources
from _lib.stream_worlds import Timed, World, real, sleeping, virtual

import streaminfer as si
from streaminfer.streams import Frame, LatestOnly, StreamSession

CAMERAS, OVERLOAD = (64, 4), 2.0  # the first exceeds the rows of a batch, the second does not
REST, GREEDY = 24, 20
REST_SHARE = 0.54  # of the capacity, for all streams but the greedy one; with it, the load is about the capacity
STREAMS, FRAMES = 64, 400
ADDED_CPU = Figure("CPU per chunk that StreamSession adds", over="a bare await of the service", at_most=2.0)
TASKS = Figure("tasks per chunk in a StreamSession", form="{:.2f}")
OLDEST = Figure(
    "p99 age of results of cameras at 2× the capacity, latest only",
    over="two batches and a frame interval",
    at_most=1.0,
)
UNCOUNTED = Figure("frames of live streams not counted exactly once", form="{:.0f}", at_most=0)
REST_P99 = Figure(
    "p99 of 24 streams beside one that sends 20 times as much, fair=True", over="the 24 alone", at_most=1.2
)
JAIN = Figure(
    "Jain's index of 24 streams beside one that sends 20 times as much, fair=True", form="{:.2f}", at_least=0.98
)
LEFT = Figure("tasks, threads and descriptors left by churn of 1,000 viewers", form="{:.0f}", at_most=0)


# -- CPU per chunk -----------------------------------------------------------------------------------------------------


async def chunks(count: int) -> AsyncIterator[float]:
    for _ in range(count):
        yield 1.0


def cheap_stack() -> si.Stack:
    batcher = si.AdaptiveBatcher(max_batch_size=64, stack=False)
    return si.Stack(batcher, si.CpuBackend(lambda items: items, executor="inline"))


async def bare(service: Any, number: int) -> None:
    async for x in chunks(FRAMES):
        await service(x, stream_id=number)


async def in_session(session: StreamSession, number: int) -> None:
    async for _ in session(chunks(FRAMES), stream_id=number):
        pass


async def task_per_frame(service: Any, number: int) -> None:
    """Serve a stream as a user would write it: a reader, a bounded queue, a task per frame, results in order."""
    frames: asyncio.Queue[Any] = asyncio.Queue(1)
    results: asyncio.Queue[Any] = asyncio.Queue(1)

    async def read() -> None:
        async for x in chunks(FRAMES):
            await frames.put(x)
        await frames.put(None)

    async def answer() -> None:
        while (x := await frames.get()) is not None:
            await results.put(await asyncio.create_task(call(service, x, number)))
        await results.put(None)

    tasks = [asyncio.create_task(read()), asyncio.create_task(answer())]
    while await results.get() is not None:
        pass
    await asyncio.gather(*tasks)


async def call(service: Any, x: float, number: int) -> tuple[Any]:
    return (await service(x, stream_id=number),)


async def cost_of(way: str) -> tuple[float, float]:
    """Return the CPU seconds and the tasks per chunk."""
    made = 0

    def factory(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        nonlocal made
        made += 1
        return asyncio.Task(coroutine, loop=loop, **options)

    async with cheap_stack() as service:
        session = StreamSession(service)
        one: Callable[[int], Any] = {
            "bare": lambda number: bare(service, number),
            "session": lambda number: in_session(session, number),
            "task per frame": lambda number: task_per_frame(service, number),
        }[way]
        gc.collect()
        asyncio.get_running_loop().set_task_factory(factory)
        begun = time.process_time()
        await asyncio.gather(*(one(number) for number in range(STREAMS)))
        cpu_s = time.process_time() - begun
        if way == "session":
            assert session.statistics().delivered == STREAMS * FRAMES
    return cpu_s / (STREAMS * FRAMES), made / (STREAMS * FRAMES)


def measure_cost(rounds: int) -> None:
    found: dict[str, list[tuple[float, float]]] = {"bare": [], "session": [], "task per frame": []}
    for _ in range(rounds):
        for way, values in found.items():
            values.append(asyncio.run(cost_of(way)))
    print(f"CPU per chunk, {STREAMS} streams, a model that costs nothing, median of {rounds} rounds (least to most)")
    for way, values in found.items():
        cpu = [value * 1e6 for value, _ in values]
        added = [mine / floor - 1 for (mine, _), (floor, _) in zip(values, found["bare"], strict=True)]
        print(
            f"  {way:16}{statistics.median(cpu):6.2f} µs ({min(cpu):.2f} to {max(cpu):.2f}), "
            f"{values[0][1]:.3f} tasks per chunk, added over a bare await: {statistics.median(added):.2f}×"
        )
    session, by_hand = (
        [mine / floor - 1 for (mine, _), (floor, _) in zip(found[way], found["bare"], strict=True)]
        for way in ("session", "task per frame")
    )
    ADDED_CPU.report(session, note=f"a queue and a task per frame {statistics.median(by_hand):.1f}×")
    TASKS.report(found["session"][0][1], note=f"a queue and a task per frame {found['task per frame'][0][1]:.0f}")


# -- ages under overload -----------------------------------------------------------------------------------------------


async def camera(world: World, clock: Callable[[], int], place: float, interval_s: float, end_ns: int) -> Any:
    due_ns = clock() + round(place * interval_s * 1e9)
    while due_ns < end_ns:
        await asyncio.sleep(max(due_ns - clock(), 0) / 1e9)
        yield Frame(world.frame, due_ns)
        due_ns += round(interval_s * 1e9)


async def by_hand(
    world: World, model: Timed, count: int, interval_s: float, clock: Callable[[], int], end_ns: int
) -> list[tuple[Frame, int]]:
    """Give a free model the newest frames of as many cameras as fit, longest waiting first."""
    newest: dict[int, Frame] = {}
    arrived, served, answered = asyncio.Event(), dict.fromkeys(range(count), 0), []

    async def play(number: int) -> None:
        async for frame in camera(world, clock, number / count, interval_s, end_ns):
            newest[number] = frame
            arrived.set()

    playing = asyncio.gather(*(play(number) for number in range(count)))
    playing.add_done_callback(lambda _: arrived.set())
    while newest or not playing.done():
        chosen = [(number, newest.pop(number)) for number in sorted(newest, key=served.__getitem__)[: world.batch]]
        if chosen:
            inputs = [frame.inputs for _, frame in chosen]
            await model.infer(si.Batch(np.stack(inputs), [si.Request(one) for one in inputs]))
        for number, frame in chosen:
            served[number] = clock()
            answered.append((frame, clock()))
        if not newest:
            await arrived.wait()
            arrived.clear()
    return answered


async def cameras(world: World, count: int, way: str, clock: Callable[[], int]) -> None:
    """Print a line on cameras at twice the capacity of the model, and report a session's figures."""
    interval_s = count / (OVERLOAD * world.capacity)
    model = Timed(world.make(), clock)
    ages: list[float] = []
    uncounted, received = 0, 0
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=world.batch, max_queue_size=10**6), model, clock=clock) as it:
        begun_ns = clock()
        end_ns = begun_ns + round(world.seconds * 1e9)
        warm_ns = begun_ns + round(world.seconds * 0.1e9)
        if way == "session":
            async with StreamSession(it, policy=LatestOnly()) as session:
                for number in range(count):
                    session.add(camera(world, clock, number / count, interval_s, end_ns))
                # no newer frame replaces the last one of a camera, so the end of the run is not in the steady state
                ages += [one.age_s async for one in session if warm_ns < one.captured_ns and one.delivered_ns < end_ns]
                seen = session.statistics()
            received = seen.received
            uncounted = abs(received - seen.delivered - seen.failed - sum(seen.dropped.values()))
        elif way == "by hand":
            answered = await by_hand(world, model, count, interval_s, clock, end_ns)
            ages += [(at - one.captured_ns) / 1e9 for one, at in answered if warm_ns < one.captured_ns and at < end_ns]
        else:
            tasks: set[asyncio.Task[None]] = set()

            async def answer(frame: Frame, number: int) -> None:
                await it(frame.inputs, stream_id=number)
                if frame.captured_ns > warm_ns and clock() < end_ns:
                    ages.append((clock() - frame.captured_ns) / 1e9)

            async def play(number: int) -> None:
                async for frame in camera(world, clock, number / count, interval_s, end_ns):
                    task = asyncio.create_task(answer(frame, number))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

            await asyncio.gather(*(play(number) for number in range(count)))
            while tasks:
                await asyncio.wait(tasks)
    full = [one for one, size in zip(model.seconds, model.sizes, strict=True) if size >= min(world.batch, count)]
    batch_s = statistics.median(full)
    p50, p99 = np.quantile(ages, [0.5, 0.99])
    allowed_s = 2 * batch_s + interval_s
    batches = f"batch p50 {batch_s * 1e3:.1f}, p99 {np.quantile(full, 0.99) * 1e3:.1f} ms"
    print(
        f"  {world.name:32}{way:16}{len(ages) / 0.9 / world.seconds:7.1f}/s, age p50 {p50 * 1e3:8.1f} ms, "
        f"p99 {p99 * 1e3:8.1f} ms, {p99 / allowed_s:.2f}×; {batches} of {statistics.fmean(model.sizes):.1f}, "
        f"interval {interval_s * 1e3:.0f} ms",
        flush=True,
    )
    if way == "session":
        case = f"{count} cameras, {world.name}"
        OLDEST.report(float(p99 / allowed_s), case=case, note=f"{p99 * 1e3:.1f} ms")
        UNCOUNTED.report(uncounted, case=case, of=received)


# -- fairness ----------------------------------------------------------------------------------------------------------


@attrs.define
class Heard:
    """Requests of each stream, sent and on time, and the latencies of all streams but the greedy one."""

    sent: list[int] = attrs.field(factory=lambda: [0] * (REST + 1))
    on_time: list[int] = attrs.field(factory=lambda: [0] * (REST + 1))
    latencies_s: list[float] = attrs.field(factory=list)

    @property
    def jain(self) -> float:
        shares = np.array(self.on_time[:REST]) / np.maximum(self.sent[:REST], 1)
        return float(shares.sum() ** 2 / (REST * (shares**2).sum())) if shares.any() else 0.0

    @property
    def p99_s(self) -> float:
        return float(np.quantile(self.latencies_s, 0.99)) if self.latencies_s else float("inf")


class Way(NamedTuple):
    """Way in which the streams share the service."""

    greedy: bool = True
    fair: bool = False
    priority: int = 0  # of the greedy stream


WAYS = {
    "alone": Way(greedy=False),
    "first in, first out": Way(),
    "greedy at a lower priority": Way(priority=1),  # no order can be better: only a running batch delays the others
    "fair": Way(fair=True),
}


async def crowd(world: World, share: float, seed: int, way: Way, clock: Callable[[], int]) -> Heard:
    """Run Poisson streams of plain requests, one of which may send 20 times as much; return what they got."""
    chance = random.Random(seed)
    rate = share * world.capacity / REST
    heard = Heard()
    tasks: set[asyncio.Task[None]] = set()
    batcher = si.AdaptiveBatcher(max_batch_size=world.batch, max_queue_size=4096, fair=way.fair)
    async with si.Stack(batcher, world.make(), clock=clock) as service:
        end_ns = clock() + round(world.seconds * 1e9)

        async def answer(number: int, due_ns: int) -> None:
            try:
                await service(world.frame, stream_id=number, priority=way.priority if number == REST else 0)
            except si.StreamInferError:
                return
            heard.on_time[number] += clock() - due_ns < 20 * world.batch_s * 1e9
            if number < REST:
                heard.latencies_s.append((clock() - due_ns) / 1e9)

        async def play(number: int, per_s: float) -> None:
            due_ns = clock()
            while (due_ns := due_ns + round(chance.expovariate(per_s) * 1e9)) < end_ns:
                await asyncio.sleep(max(due_ns - clock(), 0) / 1e9)
                heard.sent[number] += 1
                task = asyncio.create_task(answer(number, due_ns))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        players = [play(number, rate) for number in range(REST)]
        if way.greedy:
            players.append(play(REST, GREEDY * rate))
        await asyncio.gather(*players)
        while tasks:
            await asyncio.wait(tasks)
    heard.sent[REST] = max(heard.sent[REST], 1)
    return heard


def measure_fairness(world: World, share: float, rounds: int) -> None:
    found: dict[str, list[Heard]] = {name: [] for name in WAYS}
    for seed in range(rounds):
        for name, way in WAYS.items():
            found[name].append(world.runs(functools.partial(crowd, world, share, seed, way)))
    ratios = {
        name: [mine.p99_s / alone.p99_s for mine, alone in zip(heard, found["alone"], strict=True)]
        for name, heard in found.items()
    }
    for name, heard in found.items():
        p99s = [one.p99_s * 1e3 for one in heard]
        print(
            f"  {world.name:32}{name:28}p99 of the rest {statistics.median(p99s):8.1f} ms ({min(p99s):.1f} to "
            f"{max(p99s):.1f}), {statistics.median(ratios[name]):.2f}× alone; Jain's index of the rest on time "
            f"{statistics.median(one.jain for one in heard):.3f}"
        )
    case = f"{100 * share:.0f} % of the capacity for the 24, {world.name}"
    others = ", ".join(
        f"{name} {statistics.median(ratios[name]):.2f}×"
        for name in ("first in, first out", "greedy at a lower priority")
    )
    REST_P99.report(ratios["fair"], case=case, note=others)
    JAIN.report([one.jain for one in found["fair"]], case=case)


# -- churn -------------------------------------------------------------------------------------------------------------


def measure_churn(seconds: float) -> None:
    print(f"\nChurn in real time, 1,000 places for {seconds:g} s, then until the last viewer has left")
    asyncio.run(churn(2.0, 1000))  # warm-up: modules and pools of the first use are no leak
    before = resources()
    found = asyncio.run(churn(seconds, 1000))
    after = resources()
    print("  " + ", ".join(f"{name} {before[name]} before, {after[name]} after" for name in before))
    grown = sum(max(after[name] - before[name], 0) for name in ("threads", "descriptors"))
    LEFT.report(found.tasks + grown, note=f"{found.streams:,} streams in {seconds:g} s")
    UNCOUNTED.report(found.uncounted, case="churn of 1,000 viewers", of=found.frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="of the CPU figures; of fairness, three at most")
    parser.add_argument("--seconds", type=float, default=10, help="of each scenario")
    parser.add_argument(
        "--rest", type=float, default=REST_SHARE, help="share of the capacity without the greedy stream"
    )
    parser.add_argument("--churn", type=float, default=60, help="seconds of churn; 0 leaves it out")
    options = parser.parse_args()
    si.warmup()
    measure_cost(options.rounds)
    worlds = [virtual(options.seconds), sleeping(options.seconds), real(options.seconds)]
    for count in CAMERAS:
        print(f"\n{count} cameras at {OVERLOAD:g}× the capacity, latest only; beside them two ways by hand")
        for world in worlds:
            for way in ("session", "by hand", "task per frame"):
                world.runs(functools.partial(cameras, world, count, way))
    print(f"\n{REST} streams at {options.rest:.0%} of the capacity, and one that sends {GREEDY} times as much as each")
    for world in (virtual(6 * options.seconds, batch=1), *worlds):
        measure_fairness(world, options.rest, min(options.rounds, 3))
    if options.churn:
        measure_churn(options.churn)


if __name__ == "__main__":
    main()
