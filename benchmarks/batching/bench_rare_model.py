"""A rare model beside a busy one on a shared device, in real time: turns beside the earliest deadline first.

    python benchmarks/run.py rare_model [--rounds 3] [--seconds 5]

The models sleep in threads, so that the machine's cores do not limit them. A request of the rare model takes as much
time as several of the busy one in a full batch, and has less time. Both models can be on time, so turns should not pass
over the rare one. With the policy ``"greedy"`` a device serves the batch with the earliest deadline first.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from _lib.figures import Figure
from numpy.typing import NDArray

import streaminfer as si
from streaminfer.loadtest import OpenLoop
from streaminfer.simulation import arrivals

INPUT = np.zeros(4, np.float32)
Policy = Literal["lookahead", "greedy"]
POLICIES: tuple[Policy, ...] = ("lookahead", "greedy")
BUSY_RATES = (300, 650, 1_200)
RARE_RATE = 20
BUSY_SLO_S, RARE_SLO_S = 0.100, 0.030
WARM_S = 1.0
RARE = Figure(
    "requests of a rare model on time on a shared device, turns",
    over="the earliest deadline first",
    form="{:.3f}",
    at_least=0.97,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="per run")
    options = parser.parse_args()
    si.warmup()
    for rate in BUSY_RATES:
        ours, earliest = (
            [asyncio.run(share_on_time(policy, rate, options.seconds, seed)) for seed in range(options.rounds)]
            for policy in POLICIES
        )
        note = f"on time {statistics.median(ours):.3f}, earliest deadline {statistics.median(earliest):.3f}"
        RARE.report(
            [one / other for one, other in zip(ours, earliest, strict=True)],
            case=f"{RARE_RATE} a second, beside {rate:,} a second",
            note=note,
        )


async def share_on_time(policy: Policy, busy_rate: float, seconds: float, seed: int) -> float:
    """Return the share of the rare model's requests that are on time, after both batchers have served for a second."""
    device = si.Device("shared")
    busy = stack_of(device, policy, sleeping(0.010, 0.0003), slo_s=BUSY_SLO_S, max_batch_size=64)
    rare = stack_of(device, policy, sleeping(0.0, 0.002), slo_s=RARE_SLO_S, max_batch_size=16)
    async with busy, rare:
        start_ns = time.monotonic_ns() + 20_000_000
        runs = [
            open_loop(stack, rate, start_ns, WARM_S + seconds, 2 * seed + number)
            for number, (stack, rate) in enumerate(((busy, busy_rate), (rare, RARE_RATE)))
        ]
        await asyncio.gather(*(run.run() for run in runs))
    warm_ns = start_ns + round(WARM_S * 1e9)
    counted = [at_ns for due_ns, at_ns in zip(runs[1].due_ns, runs[1].completed_ns, strict=True) if due_ns > warm_ns]
    return sum(at_ns > 0 for at_ns in counted) / len(counted)


def open_loop(stack: si.Stack, rate: float, start_ns: int, seconds: float, seed: int) -> OpenLoop:
    due_ns = [start_ns + round(at * 1e9) for at in arrivals.poisson(rate, round(rate * seconds), seed).tolist()]

    async def ask(_: int) -> Any:
        return await stack(INPUT)

    return OpenLoop(ask, due_ns, errors=(si.DeadlineExceeded,))


def stack_of(device: si.Device, policy: Policy, model: Any, **settings: Any) -> si.Stack:
    batcher = si.AdaptiveBatcher(policy=policy, device=device, max_queue_size=10_000, **settings)
    return si.Stack(batcher, si.CpuBackend(model, workers=1, example=INPUT))


def sleeping(setup_s: float, row_s: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    def model(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        time.sleep(setup_s + row_s * len(inputs))
        return inputs

    return model


if __name__ == "__main__":
    main()
