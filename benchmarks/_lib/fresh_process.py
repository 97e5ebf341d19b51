"""A server and its callers in one new process, like a fresh server; `fresh.py` runs it with a specification.

    PYTHONPATH=benchmarks python benchmarks/_lib/fresh_process.py SPECIFICATION

The specification is JSON, and so is the result, on the last line of the output. ``contestant`` is ``default`` or
``greedy``, an `AdaptiveBatcher` with that policy and other settings at their defaults around an `OnnxBackend`, or
``minimal``, the batcher below around onnxruntime alone. A ``minimal`` process imports nothing of streaminfer but the
loops that drive all contestants.

Callers are an open loop: a request is sent when it is due, or later by the time for which the loop is blocked. Instants
count from the return of ``start()``; nothing is measured, imported or warmed up between it and the first request.
"""

import asyncio
import gc
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from _lib.closed import answers_per_second

from streaminfer.loadtest.sending.loops import OpenLoop

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "examples" / "assets"
RATE = np.array(16000)
Call = Callable[[Any, int], Awaitable[Any]]
"""Sends one request, given its inputs and its deadline in nanoseconds."""
Rows = list[Any]


class Minimal:
    """The obvious batcher: a list, a future per request, one thread around onnxruntime."""

    def __init__(self, infer: Callable[[Rows], Rows], max_batch_size: int) -> None:
        self.infer = infer
        self.max_batch_size = max_batch_size
        self.waiting: list[tuple[Any, asyncio.Future[Any]]] = []
        self.worker = ThreadPoolExecutor(1)
        self.running: asyncio.Task[None] | None = None

    async def call(self, inputs: Any, _deadline_ns: int) -> Any:
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((inputs, future))
        if self.running is None:
            self.running = asyncio.create_task(self.serve())
        return await future

    async def serve(self) -> None:
        while self.waiting:
            batch, self.waiting = self.waiting[: self.max_batch_size], self.waiting[self.max_batch_size :]
            rows = [inputs for inputs, _ in batch]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self.worker, self.infer, rows)
            except Exception as error:
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
        self.running = None


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def silero() -> Callable[[Rows], Rows]:
    model = session(ASSETS / "silero_vad_16k_op15.onnx")

    def infer(rows: Rows) -> Rows:
        inputs = np.stack([row["input"] for row in rows])
        state = np.stack([row["state"] for row in rows], axis=1)
        outputs, states = model.run(None, {"input": inputs, "state": state, "sr": RATE})
        return [(outputs[number], states[:, number]) for number in range(len(rows))]

    return infer


def blazeface() -> Callable[[Rows], Rows]:
    model = session(ASSETS / "blaze_full.onnx")
    name = model.get_inputs()[0].name

    def infer(rows: Rows) -> Rows:
        return list(zip(*model.run(None, {name: np.stack(rows)}), strict=True))

    return infer


def silero_backend(si: Any) -> Any:
    return si.OnnxBackend(
        ASSETS / "silero_vad_16k_op15.onnx", batch_axes={"state": 1, "stateN": 1}, shared_inputs={"sr": RATE}
    )


def blazeface_backend(si: Any) -> Any:
    return si.OnnxBackend(ASSETS / "blaze_full.onnx")


def silero_inputs() -> Rows:
    import wave

    with wave.open(str(ASSETS / "librivox_0870.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16) / np.float32(32768)
    state = np.zeros((2, 128), np.float32)
    return [{"input": samples[at : at + 576], "state": state} for at in range(0, len(samples) - 576, 512)]


def blazeface_inputs() -> Rows:
    return list(np.random.default_rng(0).uniform(-1, 1, (8, 192, 192, 3)).astype(np.float32))


MINIMAL = {"silero": silero, "blazeface": blazeface}
BACKENDS = {"silero": silero_backend, "blazeface": blazeface_backend}
INPUTS = {"silero": silero_inputs, "blazeface": blazeface_inputs}


def poisson(segments: list[list[float]], seed: int) -> list[float]:
    """Return Poisson arrivals in seconds; each segment has a length in seconds and a rate per second."""
    random = np.random.default_rng(seed)
    found: list[float] = []
    begins = 0.0
    for seconds, rate in segments:
        count = random.poisson(rate * seconds)
        found.extend(np.sort(random.uniform(begins, begins + seconds, count)).tolist())
        begins += seconds
    return found


def endless(call: Call, inputs: Rows) -> Callable[[int], Awaitable[Any]]:
    """Return a function that sends the inputs in turn, without a deadline."""
    return lambda number: call(inputs[number % len(inputs)], 2**62)


async def capacity(specification: dict[str, Any]) -> dict[str, Any]:
    """Return the best throughput of the minimal batcher over some batch sizes, with twice as many callers as rows."""
    name = specification["model"]
    inputs = INPUTS[name]()
    infer = MINIMAL[name]()
    rates = {}
    for size in specification["sizes"]:
        ask = endless(Minimal(infer, size).call, inputs)
        await answers_per_second(ask, 2 * size, 0.2)
        rates[str(size)] = await answers_per_second(ask, 2 * size, specification["seconds"])
    return {"rates": rates, "capacity": max(rates.values())}


async def serve(specification: dict[str, Any]) -> dict[str, Any]:
    """Start a contestant, send it the requests, and return the measurements."""
    name, contestant = specification["model"], specification["contestant"]
    slo_s, size = specification["slo_s"], specification["max_batch_size"]
    inputs = INPUTS[name]()
    due_s = poisson(specification["segments"], specification["seed"])
    stack: Any = None
    errors: tuple[type[Exception], ...] = ()
    call: Call
    if contestant == "minimal":
        started = time.monotonic()
        call = Minimal(MINIMAL[name](), size).call
    else:
        import streaminfer as si

        started = time.monotonic()
        policy = {} if contestant == "default" else {"policy": contestant}
        stack = si.Stack(si.AdaptiveBatcher(max_batch_size=size, slo_s=slo_s, **policy), BACKENDS[name](si))
        errors = (si.StreamInferError,)

        async def call(inputs: Any, deadline_ns: int) -> Any:
            return await stack.call(si.Request(inputs, deadline_ns=deadline_ns))

        await stack.start()
    start_ns = time.monotonic_ns()
    start_s = start_ns / 1e9 - started
    cpu_s, waited_s = time.process_time(), waited_for_core_s()
    slo_ns = round(slo_s * 1e9)
    due_ns = [start_ns + round(at * 1e9) for at in due_s]
    sending = OpenLoop(
        lambda number: call(inputs[number % len(inputs)], due_ns[number] + slo_ns), due_ns, errors=errors
    )
    await sending.run()
    on_time = [0 < at <= due + slo_ns for at, due in zip(sending.completed_ns, due_ns, strict=True)]
    lags = [(at - due) / 1e9 for at, due in zip(sending.sent_ns, due_ns, strict=True)]
    found = {
        "start_s": start_s,
        "cpu_s": time.process_time() - cpu_s,
        "wall_s": time.monotonic() - start_ns / 1e9,
        "waited_s": waited_for_core_s() - waited_s,
        "requests": len(due_s),
        "on_time": sum(on_time) / max(len(on_time), 1),
        "windows": windows(due_s, on_time, specification["segments"], specification["window_s"]),
        "lag_s": float(np.quantile(lags, 0.99)) if lags else 0.0,
        "numba": "numba" in sys.modules,
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "os_threads": os_threads(),
    }
    if specification.get("collect"):
        del on_time, lags, due_s, due_ns, sending
        found["collect_s"] = collect_s()
    if stack is not None:
        found["statistics"] = counters(stack)
        await stack.stop()
    return found


def waited_for_core_s() -> float:
    """Return the seconds for which this thread was ready to run and had no core; 0.0 if the kernel does not tell."""
    path = Path("/proc/thread-self/schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0


def os_threads() -> int | None:
    """Return the number of threads of this process that the kernel knows; ``None`` on systems other than Linux."""
    return len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else None


def counters(stack: Any) -> dict[str, int]:
    """Return the counters of the batcher that benchmarks read."""
    seen = stack.statistics()["AdaptiveBatcher"]
    return {"submitted": seen.submitted, "succeeded": seen.succeeded}


def windows(
    due_s: list[float], on_time: list[bool], segments: list[list[float]], window_s: float
) -> list[float | None]:
    """Return the share on time of the requests due in each window of the run; ``None`` if no request was due."""
    count = round(sum(seconds for seconds, _ in segments) / window_s)
    number = np.minimum((np.asarray(due_s) / window_s).astype(int), count - 1)
    every = np.bincount(number, minlength=count)
    good = np.bincount(number, weights=np.asarray(on_time, float), minlength=count)
    return [float(one / of) if of else None for one, of in zip(good, every, strict=True)]


def collect_s() -> float:
    """Return the seconds of a full garbage collection: the median of nine."""
    taken = []
    for _ in range(9):
        started = time.perf_counter()
        gc.collect()
        taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 2]


def main() -> None:
    specification = json.loads(sys.argv[1])
    match specification["do"]:
        case "serve":
            found = asyncio.run(serve(specification))
        case "capacity":
            found = asyncio.run(capacity(specification))
        case "collect":  # numpy and onnxruntime are imported, and nothing else was done
            found = {"collect_s": collect_s()}
        case other:
            raise SystemExit(f"do: expected serve, capacity or collect, got {other!r}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
