"""SLO and RollingHistogram beside LatencyHistogram and an empty method: ``python benchmarks/run.py slo``.

Every figure is the minimum of many repetitions, in alternation with its baselines in the same run. "Net" is the time
minus that of the loop with an empty compiled method.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from _lib.figures import Figure
from _lib.floor import cpu_per_request
from telemetry.bench_histogram import build_floor, least, loop_over

import streaminfer as si
from streaminfer.errors import BackendError
from streaminfer.telemetry._recorder_cy import Recorder
from streaminfer.telemetry.histograms.latency_histogram import LatencyHistogram
from streaminfer.telemetry.histograms.rolling_histogram import RollingHistogram
from streaminfer.telemetry.objectives._budget_recorder_cy import BudgetRecorder
from streaminfer.telemetry.objectives.slo import SLO

PER_LOOP = 2_000
REPEAT = 300
CALLERS = 32
REQUESTS = 40_000
RECORD = Figure("a call of `SLO.record` with a latency", form="{:.0f} ns", at_most=60)
BURNING = Figure("a call of `SLO.burning`", form="{:.0f} ns", at_most=100)
ADDED = Figure("time that an `SLO` adds to the record of a request", form="{:.0f} ns", at_most=60)


def histograms() -> list[LatencyHistogram]:
    return [LatencyHistogram() for _ in range(5)]


def bench_calls(floor: Any) -> None:
    slo, rolling = SLO("bench", threshold_s=0.05), RollingHistogram()
    latencies = [0.001 * (number % 60) for number in range(PER_LOOP)]  # one in six is late
    errors = [BackendError()] * PER_LOOP
    calls = {
        "the for loop": loop_over(latencies, "pass"),
        "empty Cython method": loop_over(latencies, "x.nothing(value)", x=floor),
        "time.monotonic_ns()": loop_over(latencies, "x()", x=time.monotonic_ns),
        "LatencyHistogram.record(s)": loop_over(latencies, "x.record(value)", x=LatencyHistogram()),
        "RollingHistogram.record(s)": loop_over(latencies, "x.record(value)", x=rolling),
        "SLO.record(s)": loop_over(latencies, "x.record(value)", x=slo),
        "SLO.record(error)": loop_over(errors, "x.record(value)", x=slo),
        "SLO.burning()": loop_over(latencies, "x.burning()", x=slo),
        "SLO.burn_rate(3600.0)": loop_over(latencies, "x.burn_rate(3600.0)", x=slo),
        "Recorder.record": loop_over(latencies, "x.record(0, 9)", x=Recorder(*histograms())),
        "Recorder.record with slo": loop_over(latencies, "x.record(0, 9)", x=BudgetRecorder(slo, None, *histograms())),
    }
    ns = {name: seconds / PER_LOOP * 1e9 for name, seconds in least(calls, repeat=REPEAT).items()}
    print("One call, ns                       whole      net")
    for name, value in ns.items():
        print(f"  {name:<30}{value:10.1f}{value - ns['empty Cython method']:9.1f}")
    RECORD.report(ns["SLO.record(s)"])
    BURNING.report(ns["SLO.burning()"])
    ADDED.report(ns["Recorder.record with slo"] - ns["Recorder.record"])


def bench_reads() -> None:
    slo = SLO("bench", threshold_s=0.05)
    rolling, whole = RollingHistogram(), LatencyHistogram()
    for number in range(20_000):
        latency_s = 0.001 + 0.0001 * (number * 7919 % 1000)
        slo.record(latency_s)
        rolling.record(latency_s)
        whole.record(latency_s)
    calls = {
        "LatencyHistogram.quantile(0.99)": lambda: whole.quantile(0.99),
        "RollingHistogram.quantile(0.99)": lambda: rolling.quantile(0.99),
        "RollingHistogram.snapshot()": rolling.snapshot,
        "SLO.alerts()": slo.alerts,
        "SLO.statistics()": slo.statistics,
    }
    print("\nReading, µs")
    for name, seconds in least(calls, repeat=20, number=50).items():
        print(f"  {name:<34}{seconds * 1e6:8.2f}")


def bench_stack() -> None:
    class Answering:
        enforces_deadline = True
        response = si.Response(1.0, False, "bench")

        async def call(self, _request: si.Request) -> si.Response:
            return self.response

    async def measure(telemetry: si.Telemetry) -> float:
        async with si.Stack(telemetry, Answering()) as stack:
            return await cpu_per_request(stack, CALLERS, REQUESTS)

    best = {"without": float("inf"), "with slo": float("inf")}
    for _ in range(12):
        best["without"] = min(best["without"], asyncio.run(measure(si.Telemetry("bench"))))
        slo = SLO("bench", threshold_s=0.05)
        best["with slo"] = min(best["with slo"], asyncio.run(measure(si.Telemetry("bench", slo=slo))))
    added = (best["with slo"] - best["without"]) * 1e9
    print("\nCPU per request through Stack and Telemetry, µs")
    for name, seconds in best.items():
        print(f"  {name:<34}{seconds * 1e6:8.3f}")
    print(f"  added by slo: {added:.0f} ns")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench_calls(build_floor(Path(folder)))
    bench_reads()
    bench_stack()


if __name__ == "__main__":
    main()
