"""Two models in sequence under overload, in virtual time: one deadline for both, or an earlier one for the first.

    python benchmarks/run.py pipeline [--seeds 3] [--requests 6000]

Both models take batches of up to 32; full batches take 42 and 21 ms in the mean, with 5 % noise. The SLO is 0.2 s, and
the load is given as a multiple of the capacity of the first model. An entry is the share of the requests on time,
beside the largest share that the capacity allows.
"""

import argparse
import asyncio
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from _lib.figures import Figure

import streaminfer as si
from streaminfer.testing import VirtualLoop, run

ROWS, SLO_S, NOISE = 32, 0.2, 0.05
FIRST, SECOND = (0.010, 0.001), (0.005, 0.0005)
"""Seconds of a batch, and of each of its rows."""
LOADS = (0.9, 1.0, 1.2, 1.5, 2.0)
EARLIER_S = (0.0, 0.03, 0.06, 0.1)
ON_TIME = Figure("share on time through two models one after another", form="{:.2f}")
REPORTED = {0.0: "one deadline for both", 0.03: "30 ms less for the first"}
"""Values of `EARLIER_S` that are reported as figures, with their names."""


class Model:
    """Model that takes a set-up time and a time per row, with noise."""

    returns_new_arrays = True

    def __init__(self, setup_s: float, row_s: float, seed: int) -> None:
        self._setup_s, self._row_s = setup_s, row_s
        self._random = np.random.default_rng(seed)

    async def infer(self, batch: si.Batch) -> Sequence[Any]:
        noise = math.exp(NOISE * self._random.standard_normal())
        await asyncio.sleep((self._setup_s + self._row_s * len(batch)) * noise)
        return [0] * len(batch)


class Pipeline:
    """Two models in sequence; the first must respond ``earlier_ns`` before the deadline."""

    slo_s = SLO_S

    def __init__(self, first: si.Stack, second: si.Stack, earlier_ns: int) -> None:
        self._first, self._second, self._earlier_ns = first, second, earlier_ns
        self.children = {"first": first, "second": second}

    async def call(self, request: si.Request) -> si.Response:
        assert request.deadline_ns is not None
        await self._first.call(si.Request(0, deadline_ns=request.deadline_ns - self._earlier_ns))
        return await self._second.call(si.Request(0, deadline_ns=request.deadline_ns))


async def measure(load: float, earlier_s: float, seed: int, requests: int, loop: VirtualLoop) -> float:
    """Return the share of the requests on time."""
    first, second = (
        si.Stack(si.AdaptiveBatcher(max_batch_size=ROWS, stack=False), Model(*times, seed), clock=loop.clock)
        for times in (FIRST, SECOND)
    )
    pipeline = si.Stack(Pipeline(first, second, round(earlier_s * 1e9)), clock=loop.clock)
    rate = load * ROWS / (FIRST[0] + ROWS * FIRST[1])
    due_s = loop.time() + np.cumsum(np.random.default_rng(seed).exponential(1 / rate, requests))
    on_time = 0

    async def ask(at_s: float) -> None:
        nonlocal on_time
        await asyncio.sleep(at_s - loop.time())
        try:
            await pipeline(0)
        except si.StreamInferError:
            return
        on_time += loop.time() <= at_s + SLO_S

    async with first, second, pipeline:
        await asyncio.gather(*map(ask, due_s.tolist()))
    return on_time / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=6_000)
    options = parser.parse_args()
    heads = "".join(f"{f'{earlier_s * 1e3:.0f} ms' if earlier_s else 'one deadline':>14}" for earlier_s in EARLIER_S)
    print(f"share on time; the first stage must respond earlier by\n{'load':>6}{heads}{'enough for':>14}")
    reports = []
    for load in LOADS:
        entries = ""
        found: dict[float, list[float]] = {}
        for earlier_s in EARLIER_S:
            found[earlier_s] = shares = [
                run(functools.partial(measure, load, earlier_s, seed, options.requests))
                for seed in range(options.seeds)
            ]
            entries += f"{f'{min(shares):.2f} to {max(shares):.2f}':>14}"
        capacity = min(1.0, 1 / load)
        print(f"{load:6.1f}{entries}{capacity:14.2f}", flush=True)
        reports += [(f"{load:.1f}× capacity, {words}", found[at], capacity) for at, words in REPORTED.items()]
    for case, shares, capacity in reports:
        ON_TIME.report(shares, case=case, note=f"the capacity is enough for {capacity:.2f}")


if __name__ == "__main__":
    main()
