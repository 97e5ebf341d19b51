"""MLPerf LoadGen: largest valid rate of our default batcher, of a greedy asyncio batcher, and without batches.

    python benchmarks/run.py loadgen [--rounds 2] [--seconds 3] [--tries 2]

The *Server* scenario of `mlcommons-loadgen`: Poisson arrivals from a separate thread; a run is valid if 99 % of the
queries complete within 10 ms. The model is silero, one session of one thread, 32 rows per batch. Each run is a new
process: LoadGen begins as soon as the server reports its start. *minimal* is a list, a future per request and one
thread around onnxruntime alone; *single* is the same with one row at a time.

Rates are shares of the closed-loop throughput of minimal, tried from the highest down, all contestants in turn; a rate
counts if one of its tries is valid. A request that our batcher rejects is completed a second later, so that LoadGen
counts it as late.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from _lib.figures import Figure
from _lib.fresh import ROOT, SETTINGS, Caches, caches, capacity, in_turn, progress

LATENCY_S = 0.010
PERCENTILE = 0.99
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)
FIGURES = {
    "minimal": Figure(
        "largest valid rate of silero, MLPerf LoadGen, p99 ≤ 10 ms",
        over="a greedy asyncio batcher",
        at_least=1.0,
    ),
    "single": Figure(
        "largest valid rate of silero in batches, MLPerf LoadGen, p99 ≤ 10 ms", over="one row at a time", at_least=3.0
    ),
}
CONTESTANTS = ("default", *FIGURES)
MIN_QUERIES = 1000
"""With fewer queries, LoadGen does not accept that 99 % are on time, even if none is late."""
PATIENCE_S = 120.0
RESULTS = ("VALID", "INVALID")


async def serve(contestant: str, rate: float, seconds: float) -> None:
    """Start a contestant, let LoadGen test it once, and print the result."""
    from _lib.fresh_process import BACKENDS, INPUTS, MINIMAL, Minimal

    import streaminfer as si

    size = SETTINGS["silero"].max_batch_size
    service: Any
    if contestant in FIGURES:
        minimal = Minimal(MINIMAL["silero"](), 1 if contestant == "single" else size)

        async def service(row: Any) -> Any:
            return await minimal.call(row, 0)
    else:
        service = si.Stack(si.AdaptiveBatcher(max_batch_size=size, slo_s=LATENCY_S), BACKENDS["silero"](si))
    found = await si.loadtest.run_mlperf(
        service,
        inputs=INPUTS["silero"](),
        rate=rate,
        slo_s=LATENCY_S,
        duration_s=max(seconds, MIN_QUERIES / rate),
        percentile=PERCENTILE,
    )
    print(json.dumps([found.valid, found.p99_s]))


def judge_rate(contestant: str, rate: float, seconds: float, numba_cache: str) -> tuple[bool, float]:
    """Test a rate in a new process; return whether LoadGen finds it valid, and the 99th percentile in seconds."""
    specification = json.dumps([contestant, rate, seconds])
    environment = {**os.environ, "NUMBA_CACHE_DIR": numba_cache}
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", specification]
    try:
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, timeout=PATIENCE_S, check=True, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return False, float("inf")  # the contestant is so far behind that the test does not end
    valid, p99_s = json.loads(done.stdout.splitlines()[-1])
    return bool(valid), float(p99_s)


def largest_valid(made: Caches, top: float, options: argparse.Namespace, number: int) -> dict[str, float]:
    """Return the largest valid rate of each contestant; 0.0 if no rate is valid."""
    found: dict[str, float] = {}
    for share in SHARES:
        for attempt in range(options.tries):
            for name in in_turn(CONTESTANTS, number + attempt):
                if name in found:
                    continue
                progress(f"round {number + 1} of {options.rounds}, {share:.0%} of {top:,.0f}/s, {name}")
                valid, p99_s = judge_rate(name, share * top, options.seconds, made.warm)
                progress("")
                print(f"  {name:8} {share * top:8,.0f}/s  p99 {1e3 * p99_s:9.2f} ms  {RESULTS[not valid]}", flush=True)
                if valid:
                    found[name] = share * top
        if len(found) == len(CONTESTANTS):
            break
    return {name: found.get(name, 0.0) for name in CONTESTANTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="the least duration of a test")
    parser.add_argument("--tries", type=int, default=2, help="at a rate, before it counts as invalid")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(*json.loads(options.serve)))
        return
    ratios: dict[str, list[float]] = {name: [] for name in FIGURES}
    with caches() as made:
        for number in range(options.rounds):
            top = capacity(SETTINGS["silero"], made)
            print(f"round {number + 1}: minimal answers {top:,.0f}/s in a closed loop")
            rates = largest_valid(made, top, options, number)
            print("  largest valid: " + ", ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items()))
            for name, found in ratios.items():
                if rates[name]:
                    found.append(rates["default"] / rates[name])
                else:
                    print(f"  {name} has no valid rate: this machine is too noisy to tell")
    for name, found in ratios.items():
        if found:
            FIGURES[name].report(found)


if __name__ == "__main__":
    main()
