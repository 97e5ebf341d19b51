"""Load tests: `python benchmarks/run.py loadtest [PART ...]`, parts: loop, stall, verdict, capacity.

* *loop*: schedule error of 20,000 requests/s to a no-op service on one core, and their CPU beside a bare loop that
  makes the same tasks on the same schedule and records nothing; the CPU includes all work of `send`. Beside the error,
  the wake-up delay of a thread that only sleeps on the same core: on a busy machine, this delay causes the error.
* *stall*: p99.9 over the true one, in virtual time, if the service pauses for a second; a closed loop beside it.
* *verdict*: 200 comparisons of equal runs, and of runs in which one has a p99 that is 10 % higher; the baseline is a
  fixed threshold of 5 %. Latencies are independent, or correlated, of a single server at half load.
* *capacity*: searches on a simulated device with noise σ 0.2 and a capacity that is known from millions of requests;
  and without noise, through the whole open loop, beside the rate of the device.
"""

import argparse
import asyncio
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _lib.figures import Figure
from numpy.typing import NDArray

import streaminfer as si
from streaminfer.loadtest.capacity.search import CapacitySearch, Step
from streaminfer.loadtest.quantiles import quantile_of
from streaminfer.loadtest.sending.sender import send
from streaminfer.testing import VirtualLoop
from streaminfer.testing import run as run_virtually

RATE = 20_000.0
MEAN_S = 0.005
SLO_S = 0.05
CPU = Figure("CPU per request of an open loop at 20,000/s", over="a bare loop that makes tasks", at_most=1.5)
SCHEDULE = Figure("schedule error of an open loop at 20,000/s, p99", form="{:.2f} ms", at_most=1.0)
STALL = Figure(
    "p99.9 that an open loop reports after a pause of 1 s",
    over="the true p99.9",
    form="{:.3f}×",
    at_least=0.95,
    at_most=1.05,
)
FALSE = Figure("false verdicts of loadtest.compare on p99s that do not differ", form="{:.1f} %", at_most=2.0)
DETECTED = Figure("p99s higher by 10 % that loadtest.compare detects", form="{:.1f} %", at_least=95.0)
COVERED = Figure(
    "capacity searches whose 95 % interval covers the capacity, noise σ 0.2", form="{:.0f} %", at_least=95.0
)
WITHIN = Figure("capacity searches within 3 % of the capacity, noise σ 0.2", form="{:.0f} %")
NOISELESS = Figure("error of the capacity of a device without noise", form="{:.1f} %", at_most=3.0)
Floats = NDArray[np.float64]


async def no_op(inputs: Any) -> Any:
    return inputs


async def bare_loop(due_ns: list[int]) -> None:
    """Run the obvious open loop: sleep, make the tasks that are due, record nothing."""
    number = 0
    while number < len(due_ns):
        now = time.monotonic_ns()
        while number < len(due_ns) and due_ns[number] <= now:
            asyncio.create_task(no_op(1.0))  # noqa: RUF006 - the task ends at once
            number += 1
        if number < len(due_ns):
            await asyncio.sleep((due_ns[number] - now) / 1e9)
    await asyncio.sleep(0.01)


def wake_up_error_s(seconds: float) -> float:
    """Return the p99 of the wake-up delay of a thread that sleeps half a millisecond at a time."""
    late = []
    ends = time.monotonic() + seconds
    while (began := time.monotonic()) < ends:
        time.sleep(0.0005)
        late.append(time.monotonic() - began - 0.0005)
    return float(np.quantile(late, 0.99))


def bench_loop(rounds: int, seconds: float) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"loop: {RATE:,.0f}/s to a no-op service on one core, {rounds} rounds of {seconds:g} s")
    ratios, errors, idle = [], [], []
    for number in range(rounds):
        idle_s = wake_up_error_s(1.0)
        offsets_ns = np.rint(si.loadtest.Poisson(RATE).schedule(seconds, number) * 1e9).astype(np.int64)
        due_ns = (time.monotonic_ns() + 20_000_000 + offsets_ns).tolist()
        cpu_s = time.process_time()
        asyncio.run(bare_loop(due_ns))
        bare_s = (time.process_time() - cpu_s) / len(due_ns)
        cpu_s = time.process_time()
        record = asyncio.run(send(no_op, [1.0], offsets_ns / 1e9, drain_s=1.0, duration_s=seconds))
        ours_s = (time.process_time() - cpu_s) / len(due_ns)
        error_s = float(np.quantile(record.late_s, 0.99))
        ratios.append(ours_s / bare_s)
        errors.append(1e3 * error_s)
        idle.append(1e3 * idle_s)
        print(
            f"  {1e6 * ours_s:.2f} µs CPU a request, bare {1e6 * bare_s:.2f}: {ratios[-1]:.2f}×; "
            f"sent late, p99 {1e3 * error_s:.2f} ms; a thread that sleeps: {1e3 * idle_s:.2f} ms"
        )
    CPU.report(ratios)
    SCHEDULE.report(errors, note=f"a thread that only sleeps {statistics.median(idle):.2f} ms")


def pausing(pause_s: float) -> Callable[[Any], Any]:
    """Return a device with a service time of 2 ms that pauses for one second."""
    free_s = 0.0

    async def serve(inputs: Any) -> Any:
        nonlocal free_s
        now = asyncio.get_running_loop().time()
        start = max(now, free_s)
        free_s = (pause_s + 1.0 if pause_s <= start < pause_s + 1.0 else start) + 0.002
        await asyncio.sleep(free_s - now)
        return inputs

    return serve


def bench_stall() -> None:
    seconds, rate, pause_s = 60.0, 200.0, 20.0
    ratios, closed_ratios = [], []
    for seed in range(5):
        arrivals = si.loadtest.Poisson(rate)
        due_s = arrivals.schedule(seconds, seed) + 0.02
        free_s, truth = 0.0, []
        for due in due_s:
            start = max(due, free_s)
            free_s = (pause_s + 1.0 if pause_s <= start < pause_s + 1.0 else start) + 0.002
            truth.append(free_s - due)
        true_s = quantile_of(np.array(truth), 0.999)

        async def main(_loop: VirtualLoop, seed: int = seed, arrivals: Any = arrivals) -> tuple[float, float]:
            report = await si.loadtest.run(
                pausing(pause_s), arrivals=arrivals, inputs=[1.0], duration_s=seconds, slo_s=0.1, seed=seed
            )
            begins = asyncio.get_running_loop().time()
            service = pausing(begins + pause_s)
            closed = await si.loadtest.closed_loop(lambda _number: service(1.0), 1, seconds)
            return report.quantile(0.999), quantile_of(np.array(closed), 0.999)

        found_s, closed_s = run_virtually(main)
        ratios.append(found_s / true_s)
        closed_ratios.append(closed_s / true_s)
    print(f"stall: a pause of 1 s in {seconds:g} s at {rate:g}/s, p99.9 over the true one, 5 seeds")
    STALL.report(ratios, note=f"closed loop {statistics.median(closed_ratios):.4f}×")


def queue(rate: float, n: int, seed: int, sigma: float) -> Floats:
    """Return latencies of a single server, Poisson arrivals, lognormal service times, by Lindley's recursion."""
    rng = np.random.default_rng(seed)
    gaps, work = rng.exponential(1 / rate, n), MEAN_S * rng.lognormal(-(sigma**2) / 2, sigma, n)
    steps = np.concatenate([[0.0], np.cumsum(work[:-1] - gaps[1:])])
    latencies: Floats = steps - np.minimum.accumulate(steps) + work
    return latencies


def independent(n: int, seed: int) -> Floats:
    return MEAN_S * np.random.default_rng(seed).lognormal(0.0, 0.5, n)


def bench_verdict(pairs: int) -> None:
    kinds: tuple[tuple[str, Callable[[int], Floats]], ...] = (
        ("independent latencies, 20,000 requests", lambda seed: independent(20_000, seed)),
        ("a queue at half load, 120,000 requests", lambda seed: queue(100.0, 120_000, seed, 0.5)),
    )
    print(
        f"verdict: p99, stated false alarms 2 %, {pairs} comparisons of each kind; beside it a fixed threshold of 5 %"
    )
    for case, make in kinds:
        false = detected = undecided = false_fixed = detected_fixed = 0
        for seed in range(pairs):
            before, after = make(2 * seed), make(2 * seed + 1)
            same, slower = si.loadtest.compare(before, after), si.loadtest.compare(before, 1.1 * after)
            false += same.regressed or same.improved
            undecided += same.undecided
            detected += slower.regressed
            change = quantile_of(after, 0.99) / quantile_of(before, 0.99)
            false_fixed += abs(change - 1) > 0.05
            detected_fixed += 1.1 * change - 1 > 0.05
        fixed = "fixed threshold of 5 %: "
        note = f"{fixed}{false_fixed / pairs:.1%}; undecided {undecided / pairs:.1%}"
        FALSE.report(100 * false / pairs, case=case, note=note)
        DETECTED.report(100 * detected / pairs, case=case, note=f"{fixed}{detected_fixed / pairs:.1%}")


def known_capacity(sigma: float) -> float:
    low, high = 100.0, 200.0
    for _ in range(12):
        rate = (low + high) / 2
        late = float(np.mean([(queue(rate, 1_000_000, seed, sigma) > SLO_S).mean() for seed in (1, 2)]))
        low, high = (rate, high) if late < 0.01 else (low, rate)
    return low


def bench_capacity(searches: int) -> None:
    truth = known_capacity(0.2)
    errors, covered, halves = [], 0, []
    for seed in range(searches):
        search, number = CapacitySearch(50.0, 400.0, seed=seed), 0
        while (rate := search.next_rate) is not None:
            latencies = queue(rate, 10_000, 1000 * (seed + 1) + number, 0.2)
            search.add(Step.of(rate, latencies[1_000:] > SLO_S))
            number += 1
        found = search.result()
        errors.append(found.rate / truth - 1)
        halves.append((found.interval[1] - found.interval[0]) / 2 / found.rate)
        covered += found.interval[0] <= truth <= found.interval[1]
    size = np.abs(errors)
    print(f"capacity: noise σ .2, steps of 10,000 requests, {searches} searches; known {truth:.1f}/s")
    COVERED.report(100 * covered / searches, note=f"half its width {np.median(halves):.1%}")
    note = f"error, median {np.median(size):.1%}, largest {size.max():.1%}"
    WITHIN.report(100 * float(np.mean(size <= 0.03)), note=note)

    async def main(_loop: VirtualLoop) -> si.loadtest.Capacity:
        free_s = 0.0

        async def device(inputs: Any) -> Any:
            nonlocal free_s
            now = asyncio.get_running_loop().time()
            free_s = max(now, free_s) + MEAN_S
            await asyncio.sleep(free_s - now)
            return inputs

        return await si.loadtest.find_capacity(
            device, inputs=[1.0], slo_s=SLO_S, low=100.0, high=400.0, step_s=20.0, arrivals=si.loadtest.Constant
        )

    found = run_virtually(main)
    print(f"  without noise: {found}, known {1 / MEAN_S:.0f}/s")
    NOISELESS.report(100 * abs(found.rate * MEAN_S - 1))


PARTS = ("loop", "stall", "verdict", "capacity")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round of the loop")
    parser.add_argument("--pairs", type=int, default=200, help="comparisons of each kind")
    parser.add_argument("--searches", type=int, default=100)
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"expected parts of {PARTS}, got {unknown}")
    began = math.floor(time.monotonic())
    for part in options.parts or PARTS:
        match part:
            case "loop":
                bench_loop(options.rounds, options.seconds)
            case "stall":
                bench_stall()
            case "verdict":
                bench_verdict(options.pairs)
            case _:
                bench_capacity(options.searches)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
