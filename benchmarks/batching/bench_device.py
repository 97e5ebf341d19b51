"""Two models on one device: turns and preemption beside two independent batchers.

    python benchmarks/run.py device [--seeds 12] [--rounds 5] [--seconds 5]

Part 1, simulated, so deterministic: requests on time over the joint clairvoyant optimum; SLO 25 and 100 ms, half of the
device for each model. Two independent batchers run on a device that executes batches one after the other, in the order
in which they were sent, and on a device whose time they share evenly.

Part 2, simulated: two models that do not fit in memory together; in most cases a load takes longer than the SLO. The
baseline of turns is the busier model alone, which is never unloaded and leaves the other model unserved.

Part 3, in real time, on one core: silero (SLO 25 ms) beside BlazeFace (SLO 100 ms), each with one session of one
thread, under open loads. A load is a share of the core; each model takes half of that share when it runs alone, with
event loop and load generator. Contestants are a device that takes turns, a preemptive device, and independent batchers.
Figures are the p99 of silero over its p99 alone, and BlazeFace's requests on time over those alone: medians of
interleaved rounds, with the same arrivals. Beside them is the floor, which no device can beat: the preemptive device
with a BlazeFace that returns at once, so that only its requests have a cost.

Over 100 % of the core no device can reach both bars with the batches that silero makes alone: its requests must wait
for larger batches, or BlazeFace's are late. So these rows have no bar. Rows with another process that keeps the core
busy have no bar either, and neither have cold rows: the first two seconds of a new process, before batchers know their
models.
"""

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import attrs
import numpy as np
from _lib.figures import Figure
from _lib.models import Model, blazeface, silero

import streaminfer as si
from streaminfer.batching import ServiceTime
from streaminfer.loadtest import OpenLoop
from streaminfer.simulation import ModelLoad, arrivals, device_optimum, simulate_device

PAIRS = {
    "alike, 2 + 0.2·b ms": (ServiceTime.affine(0.002, 0.0002), ServiceTime.affine(0.002, 0.0002)),
    "slow one patient: 1 + 0.2·b, 6 + 0.5·b ms": (ServiceTime.affine(0.001, 0.0002), ServiceTime.affine(0.006, 0.0005)),
    "slow one urgent: 4 + 0.3·b, 1 + 0.2·b ms": (ServiceTime.affine(0.004, 0.0003), ServiceTime.affine(0.001, 0.0002)),
    "no gain from batches: 1 + 1·b ms": (ServiceTime.affine(0.001, 0.001), ServiceTime.affine(0.001, 0.001)),
}
GENERATORS = {"Poisson": arrivals.poisson, "on-off": arrivals.on_off}
SLOS_S = (0.025, 0.100)
CAP = 32
SIMULATED_S = 0.8
SWAPPED_S = 60.0
SWAPS = (((5, 50), 0.1, 0.5), ((2, 50), 0.1, 0.5), ((20, 100), 0.05, 0.2), ((5, 5), 0.1, 0.5), ((5, 50), 1.0, 0.1))
"""Requests per second of each model, their SLO and the duration of a load, in seconds."""
LOADS = (0.6, 0.8, 1.2)
CONDITIONS = (*((load, "") for load in LOADS), (LOADS[0], ", a busy process on the core"), (LOADS[0], ", cold"))
"""Share of the core, of which each model takes half when it runs alone, and the special condition."""
MOST_FEASIBLE = 0.9
"""Largest share of the core at which figures have a bar."""
RATES = (300.0, 30.0)
"""Requests per second of each model from which the search for its rate begins."""
SEARCHES = 3
SEARCH_S = 2.0
COLD_S = 2.0
SEPARATE = "separate batchers"
FLOOR = "BlazeFace computes nothing"
WAYS: dict[str, Callable[[], si.Device | None]] = {
    "turns": lambda: si.Device("core"),
    "preemptive": lambda: si.Device("core", preemptive=True),
    SEPARATE: lambda: None,
    FLOOR: lambda: si.Device("core", preemptive=True),
}
REAL_CAPS = (32, 4)
TURNS = Figure("on time on a simulated device, turns", over="the joint optimum", form="{:.3f}", at_least=0.97)
ALONE = Figure("on time on a simulated device, independent batchers", over="the joint optimum", form="{:.3f}")
SWAPPED = Figure("on time where models do not fit together, turns", over="the joint optimum", form="{:.3f}")
BUSIER = Figure("on time where models do not fit together, busier model alone", over="the joint optimum", form="{:.3f}")
P99 = Figure("p99 of silero beside BlazeFace on one core", over="silero alone", at_most=1.3)
KEPT = Figure("BlazeFace on time beside silero on one core", over="BlazeFace alone", form="{:.2f}", at_least=0.95)
SILERO_KEPT = Figure("silero on time beside BlazeFace on one core", over="silero alone", form="{:.3f}")
BASE_P99 = Figure("p99 of silero, what the device stands beside", over="silero alone")
BASE_KEPT = Figure("BlazeFace on time, what the device stands beside", over="BlazeFace alone", form="{:.2f}")


def traffic(pair: tuple[ServiceTime, ServiceTime], load: float, kind: str, seed: int) -> dict[str, ModelLoad]:
    loads = {}
    for number, (service_time, slo_s) in enumerate(zip(pair, SLOS_S, strict=True)):
        rate = load / 2 * CAP / service_time.seconds(CAP)
        trace = GENERATORS[kind](rate, round(rate * SIMULATED_S), 10 * seed + number)
        loads[f"{slo_s * 1e3:.0f} ms"] = ModelLoad(trace, slo_s=slo_s, service_time=service_time, max_batch_size=CAP)
    return loads


def simulated(seeds: int) -> None:
    print(f"\n{'on time over the joint optimum':58}{'turns':>8}{'lowest':>8}{'in order':>10}{'time-shared':>13}")
    for load in (0.9, 1.2):
        for kind in GENERATORS:
            means = []
            for name, pair in PAIRS.items():
                shares = []
                for seed in range(1, seeds + 1):
                    loads = traffic(pair, load, kind, seed)
                    best = device_optimum(loads)
                    ways = (
                        simulate_device(loads),
                        simulate_device(loads, shared=False, slowdown=None),
                        simulate_device(loads, shared=False),
                    )
                    shares.append([way.on_time / best for way in ways])
                means.append(np.mean(shares, axis=0).tolist())
                turns, in_order, time_shared = means[-1]
                lowest = min(row[0] for row in shares)
                label = f"{kind}, {load}×, {name}"
                print(f"{label:58}{turns:8.3f}{lowest:8.3f}{in_order:10.3f}{time_shared:13.3f}", flush=True)
            turns_shares, in_order_shares, time_shared_shares = zip(*means, strict=True)
            case = f"{kind} arrivals, {load}× of the capacity, four pairs of models"
            TURNS.report(turns_shares, case=case)
            ALONE.report(in_order_shares, case=f"batches run in order, {case}")
            ALONE.report(time_shared_shares, case=f"batches share time, {case}")


def swapped(seeds: int) -> None:
    """Report two models, of which only one fits in memory at a time, over the joint optimum."""
    for rates, limit_s, load_s in SWAPS:
        shares = []
        for seed in range(1, seeds + 1):
            loads = {
                str(at): ModelLoad(
                    arrivals.poisson(rate, round(rate * SWAPPED_S), 10 * seed + at),
                    slo_s=limit_s,
                    service_time=ServiceTime.affine(0.005, 0.001),
                    max_batch_size=CAP,
                    memory_bytes=4,
                    load_s=load_s,
                )
                for at, rate in enumerate(rates)
            }
            best = device_optimum(loads, memory_bytes=6)
            busier = max(loads.values(), key=lambda load: load.arrivals_ns.size)
            ways = simulate_device(loads, memory_bytes=6), simulate_device({"busier": busier}, memory_bytes=6)
            shares.append([way.on_time / best for way in ways])
        turns, alone = zip(*shares, strict=True)
        case = f"{rates[0]} and {rates[1]} requests/s, SLO {limit_s * 1e3:.0f} ms, a load takes {load_s * 1e3:.0f} ms"
        SWAPPED.report(turns, case=case)
        BUSIER.report(alone, case=case)


class Result(NamedTuple):
    """Outcome of the requests of one model: the p99 of the responses, in seconds, and the number on time.

    ``core`` is the share of a core that this process took during the run, for all models together.
    """

    p99_s: float
    on_time: int
    core: float


@attrs.define
class Arm:
    """One model with a batcher of its own, and the requests of a run."""

    model: Model
    backend: si.OnnxBackend | si.CpuBackend
    slo_s: float
    cap: int
    rate: float = 0.0

    def batcher(self, device: si.Device | None) -> si.AdaptiveBatcher:
        batcher = si.AdaptiveBatcher(max_batch_size=self.cap, slo_s=self.slo_s, max_queue_size=10**5, device=device)
        batcher.wrap(self.backend)
        return batcher

    async def run(self, batcher: si.AdaptiveBatcher, start_ns: int, seconds: float, seed: int) -> Result:
        service = batcher._service
        assert service is not None
        trace = arrivals.poisson(self.rate, round(self.rate * seconds), seed).tolist()
        due_ns = [start_ns + round(at * 1e9) for at in trace]
        slo_ns = round(self.slo_s * 1e9)
        inputs = self.model.inputs

        async def ask(number: int) -> None:
            await service.call(si.Request(inputs[number % len(inputs)], deadline_ns=due_ns[number] + slo_ns))

        sending = OpenLoop(ask, due_ns, errors=(si.DeadlineExceeded,))
        began_s, began_cpu_s = time.monotonic(), time.process_time()
        await sending.run()
        core = (time.process_time() - began_cpu_s) / (time.monotonic() - began_s)
        took = [at - due for at, due in zip(sending.completed_ns, due_ns, strict=True) if at]
        p99_s = float(np.quantile(took, 0.99)) / 1e9 if took else float("inf")
        return Result(p99_s, sum(one <= slo_ns for one in took), core)


Results = list[Result]
Run = Callable[[str, Sequence[int], int], Awaitable[Results]]
"""Runs the arms with the given numbers in one of `WAYS`, on the arrivals of a seed."""


async def together(
    arms: Sequence[Arm], device: si.Device | None, seconds: float, seed: int, *, warm_s: float = 1.0
) -> Results:
    """Run the arms at the same time, after their batchers have served for ``warm_s`` seconds."""
    batchers = [arm.batcher(device) for arm in arms]
    for batcher in batchers:
        await batcher.start()
    gc.collect()
    results: Results = []
    for span_s, number in ((warm_s, seed + 100), (seconds, seed)):
        start_ns = time.monotonic_ns() + 20_000_000
        if span_s:
            runs = [arm.run(batcher, start_ns, span_s, number) for arm, batcher in zip(arms, batchers, strict=True)]
            results = await asyncio.gather(*runs)
    for batcher in batchers:
        await batcher.stop()
    return results


async def find_rate(arm: Arm, rate: float, load: float) -> float:
    """Return the requests per second at which a model alone takes a share of the core; the search begins at a guess."""
    for seed in range(SEARCHES):
        arm.rate = rate
        (result,) = await together([arm], None, SEARCH_S, seed, warm_s=0.0)
        rate *= load / result.core
    return rate


def real_arms() -> list[Arm]:
    """Return the arms of silero, of BlazeFace, and of a model that computes nothing in place of BlazeFace."""
    arms = [
        Arm(model, model.make(), slo_s, cap)
        for model, slo_s, cap in zip((silero(), blazeface()), SLOS_S, REAL_CAPS, strict=True)
    ]
    nothing = si.CpuBackend(lambda images: np.zeros(len(images)), executor="thread")
    return [*arms, Arm(arms[1].model, nothing, SLOS_S[1], REAL_CAPS[1])]


async def in_real_time(rounds: int, seconds: float) -> None:
    arms = real_arms()
    for arm in arms:
        await arm.backend.start()

    async def warm(way: str, numbers: Sequence[int], seed: int) -> Results:
        return await together([arms[number] for number in numbers], WAYS[way](), seconds, seed)

    async def cold(way: str, numbers: Sequence[int], seed: int) -> Results:
        told = json.dumps({"way": way, "rates": {number: arms[number].rate for number in numbers}, "seed": seed})
        new = await asyncio.create_subprocess_exec(sys.executable, __file__, "--cold", told, stdout=subprocess.PIPE)
        printed, _ = await new.communicate()
        if new.returncode:
            raise RuntimeError(f"the new process ended with {new.returncode}")
        return [Result(*values) for values in json.loads(printed.splitlines()[-1])]

    for load, beside in CONDITIONS:
        for arm, rate in zip(arms, RATES, strict=False):
            arm.rate = await find_rate(arm, rate, load / 2)
        with busy_process() if "busy" in beside else nullcontext():
            await compare(cold if "cold" in beside else warm, arms, load, rounds, beside)
    for arm in arms:
        await arm.backend.stop()


async def first_seconds(way: str, rates: dict[str, float], seed: int) -> Results:
    """Run the arms with the given numbers from the start of their models."""
    every = real_arms()
    arms = [every[int(number)] for number in rates]
    for arm, rate in zip(arms, rates.values(), strict=True):
        arm.rate = rate
        await arm.backend.start()
    results = await together(arms, WAYS[way](), COLD_S, seed, warm_s=0.0)
    for arm in arms:
        await arm.backend.stop()
    return results


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep the cores of this process busy with another process, which also ends if this process is killed."""
    busy = subprocess.Popen(
        [sys.executable, "-c", "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"]
    )
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


async def compare(run: Run, arms: Sequence[Arm], load: float, rounds: int, beside: str) -> None:
    """Print the figures of both arms in each way, over the arms alone.

    The speed of the machine changes, so each round corrects the rates by the share of the core that they took in the
    round before.
    """
    p99: dict[str, list[float]] = {way: [] for way in WAYS}
    kept: dict[str, list[float]] = {way: [] for way in WAYS}
    silero_kept: dict[str, list[float]] = {way: [] for way in WAYS}
    alone_s, taken, rates = [], [], []
    for seed in range(rounds):
        arms[2].rate = arms[1].rate
        rates.append([arm.rate for arm in arms[:2]])
        alone = [one for number in range(2) for one in await run(SEPARATE, [number], seed)]
        alone_s.append(alone[0].p99_s)
        taken.append(sum(one.core for one in alone))
        turned = seed % len(WAYS)
        for way in (*list(WAYS)[turned:], *list(WAYS)[:turned]):
            urgent, patient = await run(way, [0, 2] if way == FLOOR else [0, 1], seed)
            p99[way].append(urgent.p99_s / alone[0].p99_s)
            silero_kept[way].append(urgent.on_time / max(alone[0].on_time, 1))
            kept[way].append(patient.on_time / max(alone[1].on_time, 1))
        for arm, one in zip(arms, alone, strict=False):
            arm.rate *= load / 2 / one.core
    print(f"\nat {load:.0%} of the core{beside}; silero's p99 alone: {statistics.median(alone_s) * 1e3:.1f} ms")
    urgent_rate, patient_rate = (statistics.median(each) for each in zip(*rates, strict=True))
    print(f"  alone, silero with {urgent_rate:.0f}/s and BlazeFace with {patient_rate:.0f}/s take", end=" ")
    print(f"{statistics.median(taken):.0%} of it ({min(taken):.0%} to {max(taken):.0%})")
    for way in WAYS:
        has_bar = way == "preemptive" and load <= MOST_FEASIBLE and not beside
        case = f"{way}, {load:.0%} of the core{beside}"
        (P99 if has_bar else BASE_P99).report(p99[way], case=case)
        (KEPT if has_bar else BASE_KEPT).report(kept[way], case=case)
        SILERO_KEPT.report(silero_kept[way], case=case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=12, help="of each simulated row; 0: none is run")
    parser.add_argument("--rounds", type=int, default=5, help="in real time; 0: none is run")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run in real time")
    parser.add_argument("--cold", type=json.loads, help=argparse.SUPPRESS)  # one run of a new process
    options = parser.parse_args()
    if options.cold:
        print(json.dumps(asyncio.run(first_seconds(**options.cold))))
        return
    si.warmup()
    if options.seeds:
        simulated(options.seeds)
        swapped(options.seeds)
    if options.rounds:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        asyncio.run(in_real_time(options.rounds, options.seconds))


if __name__ == "__main__":
    main()
