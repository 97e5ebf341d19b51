"""MLPerf LoadGen as referee: the largest rate that it finds valid, of ours as shipped and of a greedy asyncio batcher.

    python benchmarks/run.py loadgen [--rounds 2] [--seconds 3] [--tries 2]

The *Server* scenario of `mlcommons-loadgen`: Poisson arrivals from a thread of its own, valid where 99 % of the queries
are answered within 10 ms. The model is silero, one session of one thread, 32 rows a batch. Each run is a new process:
LoadGen begins as soon as the server says that it has started. *minimal* is a list, a future for each request and one
thread around onnxruntime itself.

Rates are shares of what minimal answers in a closed loop, tried from the highest down, both contestants in turn; a
rate counts where one of some tries is valid. A request that ours rejects is completed a second later, so that LoadGen
counts it as late.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

from _lib.fresh import ROOT, SETTINGS, Caches, caches, capacity, in_turn, progress

LATENCY_S = 0.010
PERCENTILE = 0.99
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)
CONTESTANTS = ("default", "minimal")
BAR = 1.0
REJECTED_S = 1.0
MIN_QUERIES = 1000
"""Of fewer, none late, LoadGen does not believe that 99 % are on time."""
PATIENCE_S = 120.0
RESULTS = ("VALID", "INVALID")


async def serve(contestant: str, rate: float, seconds: float, folder: str) -> None:
    """Starts a contestant and lets LoadGen test it once."""
    import mlperf_loadgen as loadgen
    from _lib.fresh_process import BACKENDS, INPUTS, MINIMAL, Minimal

    inputs = INPUTS["silero"]()
    size = SETTINGS["silero"].max_batch_size
    rejections: tuple[type[Exception], ...] = ()
    ask: Any
    if contestant == "minimal":
        ask = Minimal(MINIMAL["silero"](), size).call
    else:
        import streaminfer as si

        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=size, slo_s=LATENCY_S), BACKENDS["silero"](si))
        rejections = (si.StreamInferError,)

        def ask(row: Any, _deadline_ns: int) -> Any:
            return stack(row)

        await stack.start()

    loop = asyncio.get_running_loop()
    come: deque[Any] = deque()
    scheduled = False

    def complete(number: int) -> None:
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(number, 0, 0)])

    async def one(number: int, index: int) -> None:
        try:
            await ask(inputs[index], 0)
        except rejections:
            loop.call_later(REJECTED_S, complete, number)
        else:
            complete(number)

    def take() -> None:
        nonlocal scheduled
        scheduled = False
        while come:
            number, index = come.popleft()
            asyncio.create_task(one(number, index))  # noqa: RUF006 - the future that it waits for refers to it

    def issue(samples: list[Any]) -> None:  # in LoadGen's thread
        nonlocal scheduled
        come.extend((sample.id, sample.index) for sample in samples)
        if not scheduled:
            scheduled = True
            loop.call_soon_threadsafe(take)

    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.Server
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.server_target_qps = rate
    settings.server_target_latency_ns = round(LATENCY_S * 1e9)
    settings.server_target_latency_percentile = PERCENTILE
    settings.min_duration_ms = round(seconds * 1e3)
    settings.max_duration_ms = round(10 * seconds * 1e3)
    settings.min_query_count = max(MIN_QUERIES, round(rate * seconds))
    settings.qsl_rng_seed, settings.sample_index_rng_seed, settings.schedule_rng_seed = 1, 2, 3
    logs = loadgen.LogSettings()
    logs.log_output.outdir = folder
    logs.enable_trace = False
    sut = loadgen.ConstructSUT(issue, lambda: None)
    qsl = loadgen.ConstructQSL(len(inputs), len(inputs), lambda _samples: None, lambda _samples: None)
    await asyncio.to_thread(loadgen.StartTestWithLogSettings, sut, qsl, settings, logs, "")
    loadgen.DestroyQSL(qsl)
    loadgen.DestroySUT(sut)


def verdict(contestant: str, rate: float, seconds: float, numba_cache: str) -> tuple[bool, float]:
    """Whether LoadGen finds a rate valid, in a new process; and the 99th percentile in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        specification = json.dumps([contestant, rate, seconds, folder])
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": numba_cache}
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", specification]
        try:
            subprocess.run(
                command, env=environment, stdout=subprocess.DEVNULL, timeout=PATIENCE_S, check=True, cwd=ROOT
            )
        except subprocess.TimeoutExpired:
            return False, float("inf")  # so far behind that it does not end
        lines = (Path(folder) / "mlperf_log_summary.txt").read_text(encoding="utf-8").splitlines()
    said = {name.strip(): value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}
    if said["Result is"] not in RESULTS:
        raise RuntimeError(f"mlperf_log_summary.txt: expected a result of {RESULTS}, got {said['Result is']!r}")
    return said["Result is"] == "VALID", float(said["99.00 percentile latency (ns)"]) / 1e9


def largest_valid(made: Caches, top: float, options: argparse.Namespace, number: int) -> dict[str, float]:
    """Of each contestant, the largest valid rate; 0.0 where none is."""
    found: dict[str, float] = {}
    for share in SHARES:
        for attempt in range(options.tries):
            for name in in_turn(CONTESTANTS, number + attempt):
                if name in found:
                    continue
                progress(f"round {number + 1} of {options.rounds}, {share:.0%} of {top:,.0f}/s, {name}")
                valid, p99_s = verdict(name, share * top, options.seconds, made.warm)
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
    ratios = []
    with caches() as made:
        for number in range(options.rounds):
            top = capacity(SETTINGS["silero"], made)
            print(f"round {number + 1}: minimal answers {top:,.0f}/s in a closed loop")
            rates = largest_valid(made, top, options, number)
            print("  largest valid: " + ", ".join(f"{name} {rate:,.0f}/s" for name, rate in rates.items()))
            if not rates["minimal"]:
                print("  not even minimal has a valid rate: this machine is too noisy to tell")
                continue
            ratios.append(rates["default"] / rates["minimal"])
    if ratios:
        print(f"\nlargest valid rate, default over minimal: {statistics.median(ratios):.2f}", end="")
        print(f" ({min(ratios):.2f}–{max(ratios):.2f})   bar ≥ {BAR}")


if __name__ == "__main__":
    main()
