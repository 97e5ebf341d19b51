"""Cost of overload: CPU of a rejected request over a served one, and the recovery after a burst.

    python benchmarks/run.py overload [silero] [blazeface] [--noisy] [--rounds 2] [--seconds 4]

*Cost*: waves of 64 requests through a `Stack` with a default `AdaptiveBatcher`. Served requests get their rows from the
model; rejected ones meet a blocked backend, so that all end for one reason: the deadline had passed on arrival; the
queue is full; by the planner's durations, a batch takes longer than the time left; the deadline passes in the queue.
CPU is that of the whole process, including the caller's task. It is compared with a served request of silero, the
cheapest of the real models; *net* is the same without the cost of 64 tasks that do nothing.

*Under load*: the same ratio from runs in real time, at 0.8 and at 3 times capacity, in new processes: the CPU of a run
at 3×, less that of its responses at 0.8×, per rejected request. It includes the planner. For BlazeFace it can be
negative, because batches are larger at 3×.

*Recovery*: for each model in real time, some seconds at 0.6 of capacity, one at 3×, and as many at 0.6 again. From one
second after the burst, a half-second window is *short* if its share on time is below that of the worst window before.
"""

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import numpy as np
from _lib import fresh
from _lib.figures import Figure
from _lib.fresh import (
    CONTESTANTS,
    SETTINGS,
    WINDOW_S,
    Caches,
    Setting,
    caches,
    capacity,
    in_turn,
    neighbor,
    parser,
    progress,
    serve,
)
from _lib.models import silero

import streaminfer as si
from streaminfer.batching import BatcherStatistics, ServiceTime

REJECTED = Figure("CPU of a rejected request", over="a served request of silero", at_most=0.5)
REJECTED_UNDER_LOAD = Figure(
    "CPU of a rejected request in real time at 3× capacity", over="a served request", at_most=0.5
)
FORGOTTEN = Figure(
    "half seconds from 1 s after a burst of 3× with a share on time worse by over 0.01",
    over="the worst half second before it",
    form="{:.0f}",
    at_most=0,
)
SLACK = 0.01
WAVE = 64
WAVES, ROUNDS = 60, 5
LOAD, BURST = 0.6, 3.0
BURST_S = 1.0
NEVER_S = 3600.0


class HeldUp:
    """Backend whose batches take ``takes_s`` seconds; its responses are not read."""

    name = "held up"

    def __init__(self, takes_s: float) -> None:
        self.takes_s = takes_s

    async def infer(self, batch: Any) -> list[Any]:
        await asyncio.sleep(self.takes_s)
        return [None] * len(batch.rows)


@attrs.frozen
class Case:
    """One way in which requests complete.

    Attributes:
        name: name of the case in the table.
        counted: returns the number of requests that completed in this way, by the batcher's statistics; it must be
            nearly all requests.
        within_s: seconds from sending to the deadline.
        takes_s: seconds of a batch of a `HeldUp` backend; ``None``: the model runs the batches.
        blocked: whether one batch runs forever and one request is queued.
        settings: settings of the batcher.
    """

    name: str
    counted: Callable[[BatcherStatistics], int]
    within_s: float
    takes_s: float | None = None
    blocked: bool = False
    settings: dict[str, Any] = attrs.Factory(dict)


def _late(seen: BatcherStatistics) -> int:
    return seen.deadline_exceeded


CASES = (
    Case("served by silero", lambda seen: seen.succeeded, 10.0),
    Case("deadline passed on arrival", _late, -0.001, NEVER_S, blocked=True),
    Case(
        "queue full",
        lambda seen: seen.rejected.get("queue_full", 0),
        10.0,
        NEVER_S,
        blocked=True,
        settings={"max_queue_size": 1},
    ),
    Case(
        "infeasible",
        lambda seen: seen.rejected.get("infeasible", 0) + seen.deadline_exceeded,
        0.002,
        0.02,
        settings={"service_time": ServiceTime.affine(0.02, 1e-4)},
    ),
    Case("deadline passed in the queue", _late, 0.002, NEVER_S, blocked=True),
)


async def wave(send: Callable[[int], Awaitable[Any]]) -> None:
    async def one(number: int) -> None:
        with contextlib.suppress(si.StreamInferError):
            await send(number)

    await asyncio.gather(*(asyncio.create_task(one(number)) for number in range(WAVE)))


async def cpu_s(send: Callable[[int], Awaitable[Any]]) -> float:
    """Return CPU seconds per request, over waves of requests."""
    for _ in range(10):
        await wave(send)
    gc.collect()
    started = time.process_time()
    for _ in range(WAVES):
        await wave(send)
    return (time.process_time() - started) / (WAVES * WAVE)


async def nothing(_number: int) -> None:
    """Do nothing, so that only the caller's task costs CPU."""


async def cost(case: Case) -> float:
    """Return CPU seconds of a request that completes in the way of a case."""
    model = silero()
    backend = model.make() if case.takes_s is None else HeldUp(case.takes_s)
    batcher = si.AdaptiveBatcher(max_batch_size=32, slo_s=0.05, **case.settings)
    stack = si.Stack(batcher, backend)
    await stack.start()
    inputs = model.inputs
    within_ns = round(case.within_s * 1e9)
    blockers = []
    if case.blocked:
        for _ in range(2):
            blockers.append(asyncio.create_task(stack(inputs[0], timeout_s=NEVER_S)))
            await asyncio.sleep(0.01)

    async def send(number: int) -> None:
        await stack.call(si.Request(inputs[number], deadline_ns=time.monotonic_ns() + within_ns))

    try:
        taken = await cpu_s(send)
        seen = batcher.statistics()
        if case.counted(seen) < 0.9 * (seen.submitted - len(blockers)):
            raise RuntimeError(f"{case.name}: expected nearly all requests to end so, got {seen}")
    finally:
        for blocker in blockers:
            blocker.cancel()
        await asyncio.gather(*blockers, return_exceptions=True)
        await stack.stop(drain=False)
    return taken


def costs() -> None:
    """Measure every case in turn and print the table."""
    found: dict[str, list[float]] = {case.name: [] for case in CASES}
    floor = []
    for number in range(ROUNDS):
        progress(f"cost, round {number + 1} of {ROUNDS}")
        floor.append(asyncio.run(cpu_s(nothing)))
        for case in CASES:
            found[case.name].append(asyncio.run(cost(case)))
    progress("")
    print(f"\nCPU of a request, median of {ROUNDS} interleaved rounds; of a task that does nothing: ", end="")
    print(f"{1e6 * statistics.median(floor):.1f} µs")
    served = found[CASES[0].name]
    for case in CASES:
        taken = found[case.name]
        line = f"  {case.name:30}{1e6 * statistics.median(taken):7.1f} µs"
        if case is not CASES[0]:
            net = [(one - bare) / (other - bare) for one, other, bare in zip(taken, served, floor, strict=True)]
            line += f"   net {statistics.median(net):.2f}×"
        print(line)
    for case in CASES[1:]:
        ratios = [one / other for one, other in zip(found[case.name], served, strict=True)]
        REJECTED.report(ratios, case=case.name)


def under_load(setting: Setting, made: Caches, rounds: int, seconds: float, beside: str) -> None:
    """Measure the cost of a rejected request in real time."""
    ratios, shares = [], []
    for number in range(rounds):
        rate = capacity(setting, made)
        runs = []
        for load in (0.8, BURST):
            progress(f"{setting.title}, cost under load, round {number + 1} of {rounds}, load {load}")
            run = serve(setting, "default", [(seconds, load * rate)], seed=number, numba_cache=made.warm)
            runs.append((run["cpu_s"], run["statistics"]))
        (calm_s, calm), (busy_s, busy) = runs
        if calm["succeeded"] < 0.9 * calm["submitted"]:
            progress("")
            served = calm["succeeded"] / calm["submitted"]
            print(f"  at 0.8× capacity only {served:.0%} of the requests were served: nothing to compare with")
            continue
        answer_s = calm_s / calm["succeeded"]
        rejected = busy["submitted"] - busy["succeeded"]
        ratios.append((busy_s - busy["succeeded"] * answer_s) / rejected / answer_s)
        shares.append(rejected / busy["submitted"])
    progress("")
    if ratios:
        note = f"{statistics.median(shares):.0%} of the requests rejected"
        REJECTED_UNDER_LOAD.report(ratios, case=setting.title + beside, note=note)


def recovery(setting: Setting, made: Caches, rounds: int, seconds: float, beside: str) -> None:
    """Measure the share on time of each contestant before and after a burst."""
    before = slice(1, round(seconds / WINDOW_S))
    after = slice(round((seconds + BURST_S + 1.0) / WINDOW_S), None)
    short = dict.fromkeys(CONTESTANTS, 0)
    lines: dict[str, list[str]] = {name: [] for name in CONTESTANTS}
    of = 0
    for number in range(rounds):
        rate = capacity(setting, made)
        segments = [(seconds, LOAD * rate), (BURST_S, BURST * rate), (seconds + 1.0, LOAD * rate)]
        of += round(seconds / WINDOW_S)
        for name in in_turn(CONTESTANTS, number):
            progress(f"{setting.title}, recovery, round {number + 1} of {rounds}, {name}")
            windows = serve(setting, name, segments, seed=number, numba_cache=made.warm)["windows"]
            known = [1.0 if share is None else share for share in windows]
            worst = min(known[before])
            short[name] += sum(share < worst - SLACK for share in known[after])
            burst = float(np.mean(known[before.stop : after.start]))
            lines[name].append(
                f"{fresh.shares(windows[before])} → burst and the second after it {burst:.2f} → "
                f"{fresh.shares(windows[after])}"
            )
    progress("")
    for name in CONTESTANTS:
        print(f"  {name:8} {short[name]:2} of {of} windows short")
        for line in lines[name]:
            print(f"           {line}")
    note = f"greedy {short['greedy']}, minimal {short['minimal']}"
    FORGOTTEN.report(short["default"], case=setting.title + beside, of=of, note=note)


def main() -> None:
    options = parser(__doc__, seconds=4.0, rounds=2).parse_args()
    si.warmup()
    costs()
    beside = ", noisy neighbor" * options.noisy
    with caches() as made, neighbor(options.noisy):
        for name in options.models or SETTINGS:
            print(f"\n{SETTINGS[name].title}")
            under_load(SETTINGS[name], made, options.rounds, options.seconds, beside)
            recovery(SETTINGS[name], made, options.rounds, options.seconds, beside)


if __name__ == "__main__":
    main()
