"""Real ONNX models under open load: the planner over a minimal greedy batcher, both around the same backend.

    python benchmarks/run.py models [silero] [blazeface] [g2p] [--rounds 5] [--seconds 3]

One session of one thread runs in the backend's worker; one batch in flight; at most 32 rows; 50 ms per request, counted
from the instant at which it was due, whether or not it could be sent then. All other settings are defaults, and the
planner learns the model from the batches that it sends.

*Capacity* is the best throughput of the minimal batcher over fixed batch sizes, with twice as many callers as rows. So
it includes the cost of the event loop, which is as much as that of a model with 40 µs per row. *p99* is compared at
half and at three quarters of the capacity, as the median of the ratios of interleaved rounds. Each round runs greedy
twice; the note gives the second's p99 over the first's, which is the machine's noise. *On time* is measured at 1.1× the
capacity, where at most 1/1.1 = 0.909 can be on time. *The size chosen* is the best size by the durations learned under
full load.
"""

import argparse
import asyncio
import functools
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import numpy as np
from _lib.closed import answers_per_second
from _lib.figures import Figure
from _lib.models import MODELS, Model

import streaminfer as si
from streaminfer.batching.assembly.assembler import AssembledBatch
from streaminfer.loadtest import OpenLoop
from streaminfer.simulation import arrivals
from streaminfer.simulation.profiling import profile

CAP = 32
SIZES = (1, 2, 4, 8, 16, 32)
SLO_S = 0.050
LOADS = (0.5, 0.75)
OVERLOAD = 1.1
P99 = Figure("p99 of a real model, SLO 50 ms", over="a minimal greedy batcher", at_most=1.1)
ON_TIME = Figure("share on time of a real model at 1.1× capacity, SLO 50 ms", form="{:.2f}", at_least=0.86)
THROUGHPUT = Figure("throughput of a real model under full load", over="the best fixed batch size", at_least=0.95)
THROUGHPUT_LEARNED = Figure(
    "throughput of a real model at the batch size that was learned", over="the best fixed batch size", at_least=0.95
)
Assemble = Callable[[list[Any]], Any]
Ask = Callable[[si.Request], Awaitable[Any]]


class Greedy:
    """The obvious batcher: a list, a future per request; a free backend gets all queued requests, up to a maximum."""

    def __init__(self, backend: si.OnnxBackend, max_batch_size: int, assemble: Assemble) -> None:
        self.backend = backend
        self.max_batch_size = max_batch_size
        self.assemble = assemble
        self.waiting: list[tuple[si.Request, asyncio.Future[Any]]] = []
        self.running: asyncio.Task[None] | None = None

    async def call(self, request: si.Request) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((request, future))
        if self.running is None:
            self.running = asyncio.ensure_future(self.serve())
        return await future

    async def serve(self) -> None:
        while self.waiting:
            chosen, self.waiting = self.waiting[: self.max_batch_size], self.waiting[self.max_batch_size :]
            requests = [request for request, _ in chosen]
            assemble = functools.partial(self.assemble, [request.inputs for request in requests])
            # the worker's thread assembles the batch, as it does the planner's batches
            try:
                results = await self.backend.infer(
                    AssembledBatch(assemble, requests, None, time.monotonic_ns, len(requests))
                )
            except Exception as error:
                for _, future in chosen:
                    future.set_exception(error)
                continue
            for (_, future), result in zip(chosen, results, strict=True):
                future.set_result(result)
        self.running = None


@attrs.define
class Served:
    """An open-loop run.

    Attributes:
        latencies_s: latencies of the requests that got a response.
        on_time: share of all requests that got a response within the SLO.
        lag_s: 99th percentile of the time from when a request was due to when it was sent.
    """

    latencies_s: list[float]
    on_time: float
    lag_s: float

    @property
    def p99_s(self) -> float:
        return float(np.quantile(self.latencies_s, 0.99))


async def serve_open(ask: Ask, inputs: Sequence[Any], trace: Sequence[float]) -> Served:
    """Send each request when it is due, and return the results of the run."""
    start_ns = time.monotonic_ns() + 20_000_000
    due_ns = [start_ns + round(at * 1e9) for at in trace]
    slo_ns = round(SLO_S * 1e9)
    sending = OpenLoop(
        lambda number: ask(si.Request(inputs[number % len(inputs)], deadline_ns=due_ns[number] + slo_ns)),
        due_ns,
        errors=(si.DeadlineExceeded,),
    )
    await sending.run()
    latencies_ns = [at - due for at, due in zip(sending.completed_ns, due_ns, strict=True) if at]
    lags = [(at - due) / 1e9 for at, due in zip(sending.sent_ns, due_ns, strict=True)]
    on_time = sum(took <= slo_ns for took in latencies_ns) / len(trace)
    return Served([took / 1e9 for took in latencies_ns], on_time, float(np.quantile(lags, 0.99)))


def endless(ask: Ask, inputs: Sequence[Any]) -> Callable[[int], Awaitable[Any]]:
    """Return a function that sends the inputs in turn, without a deadline."""
    return lambda number: ask(si.Request(inputs[number % len(inputs)]))


class Arms:
    """The two ways to serve one model."""

    def __init__(self, model: Model, backend: si.OnnxBackend) -> None:
        self.model = model
        self.backend = backend

    def greedy(self, cap: int = CAP) -> Ask:
        return Greedy(self.backend, cap, self.model.assemble).call

    def planner(self, slo_s: float | None, in_flight: int = 1) -> tuple[Ask, si.AdaptiveBatcher]:
        batcher = si.AdaptiveBatcher(
            max_batch_size=CAP,
            slo_s=slo_s,
            buckets=self.model.buckets,
            max_in_flight=in_flight,
            max_queue_size=10**5,  # more requests than the default size can arrive within the SLO
        )
        call: Ask = batcher.wrap(self.backend).call
        return call, batcher


async def throughputs(
    arms: Arms, seconds: float, rounds: int, sizes: Sequence[int], planner: Ask | None = None
) -> dict[int, float]:
    """Return median responses per second by fixed size, from interleaved rounds; the planner has the key 0."""
    ways = {size: (arms.greedy(size), 2 * size) for size in sizes}
    if planner is not None:
        ways[0] = (planner, 2 * CAP)
    seen: dict[int, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (ask, callers) in ways.items():
            seen[way].append(await answers_per_second(endless(ask, arms.model.inputs), callers, seconds))
    return {way: statistics.median(rates) for way, rates in seen.items()}


@attrs.define
class Findings:
    """Measurements of one model.

    Attributes:
        by_size: median responses per second of each fixed size.
        chosen: the size of best throughput, by the source of the service time; one size per bucket if there are any.
        share: throughput over the best fixed size, by size, from interleaved rounds; the planner has the key 0.
        p99: seconds of planner, greedy and a second greedy batcher in each round, by load.
        on_time: shares on time of planner and greedy at overload, in each round.
        ahead: shares on time at overload of a planner that can send the worker a second batch while the first runs.
        lag_s: 99th percentile of the time from when a request was due to when it was sent, in the worst run.
        learned: the service time that the planner learned in the open loop.
    """

    name: str
    by_size: dict[int, float]
    chosen: dict[str, list[int]]
    share: dict[int, float]
    p99: dict[float, list[tuple[float, float, float]]]
    on_time: list[tuple[float, float]]
    ahead: list[float]
    lag_s: float
    learned: Any


async def measure(model: Model, seconds: float, rounds: int) -> Findings:
    backend = model.make()
    await backend.start()
    arms = Arms(model, backend)
    by_size = await throughputs(arms, seconds / 4, rounds, SIZES)
    capacity = max(by_size.values())
    best = max(by_size, key=lambda size: by_size[size])

    saturated, learner = arms.planner(None)
    ours, batcher = arms.planner(SLO_S)
    two_ahead, pipelined = arms.planner(SLO_S, in_flight=2)
    p99: dict[float, list[tuple[float, float, float]]] = {load: [] for load in LOADS}
    on_time = []
    ahead = []
    lags = []

    async def run(ask: Ask, load: float, seed: int) -> Served:
        gc.collect()
        trace = arrivals.poisson(load * capacity, round(load * capacity * seconds), seed).tolist()
        served = await serve_open(ask, model.inputs, trace)
        lags.append(served.lag_s)
        return served

    for seed in range(rounds):
        for load in (*LOADS, OVERLOAD):
            greedy = arms.greedy()
            runs = [await run(ask, load, seed) for ask in ((ours, greedy) if seed % 2 else (greedy, ours))]
            mine, theirs = runs if seed % 2 else runs[::-1]
            if load == OVERLOAD:
                on_time.append((mine.on_time, theirs.on_time))
                ahead.append((await run(two_ahead, load, seed)).on_time)
            else:
                again = await run(arms.greedy(), load, seed)
                p99[load].append((mine.p99_s, theirs.p99_s, again.p99_s))

    await answers_per_second(
        endless(saturated, model.inputs), 2 * CAP, max(4.0, seconds)
    )  # long enough to try sizes whose batches take 0.2 s
    chosen = {
        "under full load": best_sizes(learner.service_time),
        "in the open loop": best_sizes(batcher.service_time),
        "from a profile": best_sizes(
            await profile(backend, model.inputs[:256], max_batch_size=CAP, buckets=model.buckets)
        ),
    }
    sizes = {best}.union(*chosen.values()) if model.buckets is None else {best}
    full = await throughputs(arms, seconds / 2, rounds, sorted(sizes), saturated)
    share = {way: rate / full[best] for way, rate in full.items()}
    learned = batcher.service_time
    await learner.stop()
    await pipelined.stop()
    await batcher.stop()
    await backend.stop()
    return Findings(model.name, by_size, chosen, share, p99, on_time, ahead, max(lags), learned)


def best_sizes(known: Any) -> list[int]:
    """Return the size of best throughput, one per bucket if there are buckets."""
    every = known.values() if isinstance(known, dict) else [known]
    return [
        one.best_batch_size(CAP) for one in every if not isinstance(one, si.batching.LearnedServiceTime) or one.known
    ]


def report(found: Findings) -> None:
    rates = "  ".join(f"{size}: {rate:,.0f}" for size, rate in found.by_size.items())
    print(f"\n{found.name}: capacity {max(found.by_size.values()):,.0f}/s")
    print(f"  fixed sizes, answers a second: {rates}")
    tables = found.learned if isinstance(found.learned, dict) else {"": found.learned}
    for length, model in tables.items():
        if model.known:
            table = model.fitted()
            learned = "  ".join(f"{size}: {1e3 * table.seconds(size):.2f}" for size in SIZES)
            print(f"  learned, ms a batch{f' of length {length}' if length else ''}: {learned}; {model}")
    print(f"  requests were sent up to {1e3 * found.lag_s:.1f} ms late (p99 of the worst run)")
    print(f"  on time at {OVERLOAD}× with max_in_flight=2: {statistics.median(found.ahead):.3f}")
    THROUGHPUT.report(found.share[0], case=found.name)
    for how, sizes in found.chosen.items():
        if len(sizes) == 1 and sizes[0] in found.share:
            THROUGHPUT_LEARNED.report(found.share[sizes[0]], case=f"{found.name}, {how}", note=f"size {sizes[0]}")
        else:
            print(f"  batch sizes chosen {how}: {', '.join(map(str, sizes))}")
    for load, runs in found.p99.items():
        mine, theirs, _ = (1e3 * statistics.median(column) for column in zip(*runs, strict=True))
        ratios = [own / other for own, other, _ in runs]
        noise = statistics.median(again / other for _, other, again in runs)
        note = f"{mine:.2f} over {theirs:.2f} ms; greedy over itself {noise:.2f}"
        P99.report(ratios, case=f"{found.name}, {load}× capacity", note=note)
    ours, greedy = zip(*found.on_time, strict=True)
    ON_TIME.report(ours, case=found.name, note=f"greedy {statistics.median(greedy):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", nargs="*", choices=[*MODELS, []], metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each open-loop run")
    options = parser.parse_args()
    si.warmup()
    gc.collect()
    gc.freeze()  # full collections of the benchmark's own objects are not what is measured
    for name in options.models or MODELS:
        report(asyncio.run(measure(MODELS[name](), options.seconds, options.rounds)))


if __name__ == "__main__":
    main()
