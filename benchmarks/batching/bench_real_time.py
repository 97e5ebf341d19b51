"""An ONNX model in a thread inside each batcher, in real time, SLO 50 ms: ours beside the installed peers.

    python benchmarks/run.py real_time

The model is a chain of matrix products over the batch and 13 further rows. The chain is so long that 64 rows take about
20 ms on one thread of this machine: about 3.3 + 0.26·n ms. Callers are an open loop, and latency counts from the
instant at which a request was due, so that a stall counts for all requests that it delayed. A rejection counts as an
infinite latency.

Each round measures every batcher at every load on the same arrivals, and the capacity before each load; the order
rotates from round to round. The output is the medians over the rounds, and the medians of the ratios to the minimal
greedy batcher in the same round.
"""

import argparse
import asyncio
import gc
import importlib
import importlib.util
import logging
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
from _lib.figures import Figure
from _lib.floor import MinimalGreedy
from onnx import TensorProto, helper, numpy_helper

import streaminfer as si
from streaminfer.batching import PolicyName
from streaminfer.simulation import arrivals

BATCH = 64
SLO_S = 0.05
WIDTH = 1024
SETUP_ROWS = 13
"""Rows that every batch computes in addition: the set-up cost of a batch."""
FULL_BATCH_S = 0.020
LOADS, OVERLOAD = (0.5, 0.75), 1.1
PATIENCE_S = 2.0
MINIMAL, OURS = "minimal greedy", "ours, lookahead"
P99 = Figure("p99 of an ONNX model of 3.3 + 0.26·n ms, SLO 50 ms", over="a minimal greedy batcher", at_most=1.1)
ON_TIME = Figure(
    "share on time of an ONNX model of 3.3 + 0.26·n ms at 1.1× capacity, SLO 50 ms", form="{:.3f}", at_least=0.86
)

Infer = Callable[[Sequence[int]], Awaitable[Sequence[int]]]
Call = Callable[[int], Awaitable[Any]]
Make = Callable[[Infer], tuple[Call, tuple[type[Exception], ...]]]


def chain(layers: int) -> onnxruntime.InferenceSession:
    """Return a model of ``layers`` products of (n + SETUP_ROWS, WIDTH) with (WIDTH, WIDTH)."""
    rng = np.random.default_rng(0)
    weights = {f"w{layer}": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32) for layer in range(layers)}
    bounds = {"zero": np.array([0]), "one": np.array([1]), "setup": np.array([SETUP_ROWS]), "end": np.array([2**62])}
    names = ["h0", *(f"h{layer}" for layer in range(1, layers)), "all"]
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "zero"], ["first"]),
        helper.make_node("Concat", ["first"] * SETUP_ROWS + ["x"], ["h0"], axis=0),
        *(helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]]) for layer in range(layers)),
        helper.make_node("Slice", ["all", "setup", "end", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in {**weights, **bounds}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def seconds(session: onnxruntime.InferenceSession, rows: int, times: int = 15) -> float:
    """Return the median seconds of a batch."""
    batch = np.ones((rows, WIDTH), np.float32)
    measured = []
    for _ in range(times):
        started = time.perf_counter()
        session.run(None, {"x": batch})
        measured.append(time.perf_counter() - started)
    return statistics.median(measured)


def calibrated() -> onnxruntime.InferenceSession:
    layers = 8
    session = chain(layers)
    seconds(session, BATCH)
    return chain(max(1, round(layers * FULL_BATCH_S / seconds(session, BATCH))))


def ours(policy: PolicyName) -> Make:
    def make(infer: Infer) -> tuple[Call, tuple[type[Exception], ...]]:
        batcher = si.AdaptiveBatcher(
            max_batch_size=BATCH, slo_s=SLO_S, policy=policy, max_queue_size=10**6, stack=False
        )
        return batcher.wrap(infer), (si.DeadlineExceeded,)

    return make


def minimal(infer: Infer) -> tuple[Call, tuple[type[Exception], ...]]:
    return MinimalGreedy(infer, BATCH), ()


def contestants() -> tuple[dict[str, Make], set[str]]:
    """Return all batchers, and the names of those with callers that cancel at the SLO under overload."""
    found: dict[str, Make] = {
        MINIMAL: minimal,
        OURS: ours("lookahead"),
        "ours, greedy": ours("greedy"),
    }
    if importlib.util.find_spec("bentoml") is None:
        print("the peers are not installed here: python benchmarks/run.py real_time")
        return found, set()
    batchers: Any = importlib.import_module("batchers")
    logging.getLogger("bentoml").setLevel(logging.ERROR)  # BentoML warns of every short latency
    for name, (maker, settings) in batchers.REAL_TIME.items():

        def make(
            infer: Infer, maker: Any = maker, settings: Any = settings
        ) -> tuple[Call, tuple[type[Exception], ...]]:
            return maker(infer, **settings)[0], batchers.rejections(maker)

        words = ", ".join(
            f"{key}={value}" for key, value in settings.items() if value != BATCH or key == "max_queue_size"
        )
        found[f"{name}, {words}"] = make
    return found, {name for name in found if name.startswith(batchers.CANCELS)}


async def latencies(
    make: Make, session: onnxruntime.InferenceSession, trace: Any, spent: list[float], *, cancels: bool
) -> Any:
    """Return seconds from when each request was due to its response; infinite without a response.

    ``spent`` adds up the wall and CPU time of the model, in seconds.
    """
    loop = asyncio.get_running_loop()
    inputs = np.random.default_rng(1).normal(size=(256, WIDTH)).astype(np.float32)
    measured = np.full(len(trace), np.inf)

    with ThreadPoolExecutor(1) as worker:

        def run(items: Sequence[int]) -> None:
            wall, cpu = time.perf_counter(), time.thread_time()
            session.run(None, {"x": inputs[np.asarray(items) % len(inputs)]})
            spent[0] += time.perf_counter() - wall
            spent[1] += time.thread_time() - cpu

        async def infer(items: Sequence[int]) -> Sequence[int]:
            await loop.run_in_executor(worker, run, items)
            return list(items)

        call, rejections = make(infer)
        for _ in range(30):
            await asyncio.gather(*(call(number) for number in range(8)), return_exceptions=True)
        failures: list[BaseException] = []
        waiting: set[asyncio.Task[None]] = set()

        async def request(number: int, due: float) -> None:
            try:
                answer = await call(number)
            except rejections:
                return
            if answer == number:
                measured[number] = loop.time() - due

        def done(task: asyncio.Task[None]) -> None:
            waiting.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                failures.append(error)

        origin = loop.time() + 0.01
        for number, at in enumerate((trace + origin).tolist()):
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            task = asyncio.create_task(request(number, at))
            waiting.add(task)
            task.add_done_callback(done)
            if cancels:
                loop.call_at(at + SLO_S, task.cancel)
        if waiting:
            await asyncio.wait(waiting, timeout=PATIENCE_S)
        loop.set_exception_handler(lambda _loop, _context: None)  # the end cancels tasks, which may raise
        if failures:
            raise failures[0]
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    si.warmup()
    gc.collect()
    gc.freeze()  # full collections of the benchmark's own objects are not what is measured
    makes, cancelling = contestants()
    session = calibrated()
    one, full = seconds(session, 1), seconds(session, BATCH)
    print(f"model: {one * 1e3:.1f} ms for one row, {full * 1e3:.1f} ms for {BATCH}")
    gc.collect()
    gc.freeze()
    every = (*LOADS, OVERLOAD)
    p99: dict[tuple[str, float], list[float]] = {(name, load): [] for name in makes for load in every}
    share: dict[tuple[str, float], list[float]] = {(name, load): [] for name in makes for load in every}
    spent = [0.0, 0.0]
    for number in range(options.rounds):
        names = list(makes)
        turned = names[number % len(names) :] + names[: number % len(names)]
        for load in every:
            capacity = BATCH / seconds(session, BATCH)
            trace = arrivals.poisson(load * capacity, int(load * capacity * options.seconds), number)
            for name in turned:
                gc.collect()
                cancels = name in cancelling and load > 1
                measured = asyncio.run(latencies(makes[name], session, trace, spent, cancels=cancels))
                p99[name, load].append(float(np.quantile(measured, 0.99, method="higher")))
                share[name, load].append(float((measured <= SLO_S).mean()))
    print(
        f"the model's thread had {spent[1] / spent[0]:.0%} of a core while it ran"
        + (": neighbors disturb these figures, measure again" if spent[1] < 0.95 * spent[0] else "")
    )
    print(f"{'p99 in ms, times minimal; share on time':64}{'at 0.5×':>24}{'at 0.75×':>24}{'at 1.1×':>10}")
    for name in makes:
        cells = ""
        for load in LOADS:
            ratio = statistics.median(ratios(p99[name, load], p99[MINIMAL, load]))
            ms = statistics.median(p99[name, load]) * 1e3
            cells += f"{ms:10.1f} {ratio:5.2f}× {statistics.median(share[name, load]):.3f}"
        print(f"{name:64}{cells}{statistics.median(share[name, OVERLOAD]):10.3f}")
    for load in LOADS:
        P99.report(ratios(p99[OURS, load], p99[MINIMAL, load]), case=f"{load}× capacity")
    ON_TIME.report(share[OURS, OVERLOAD], note=f"minimal greedy {statistics.median(share[MINIMAL, OVERLOAD]):.3f}")


def ratios(own: list[float], floors: list[float]) -> list[float]:
    """Return values over the floor of the same round; infinite if more than 1 % of the requests had no response."""
    return [one / floor if one < np.inf else np.inf for one, floor in zip(own, floors, strict=True)]


if __name__ == "__main__":
    main()
