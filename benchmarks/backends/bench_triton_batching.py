"""Our batcher around a real Triton without its own batching, over Triton's dynamic batching; same model, same run.

    python benchmarks/run.py triton_batching

The model is a chain of matrix products over the batch and 10 further rows. The chain is so long that 16 rows take about
20 ms on Triton's one thread, and one row about 9 ms. The model is loaded several times: without dynamic batching, for
our batcher; with it, at several values of ``max_queue_delay``; and with a queue that rejects requests that can no
longer be on time (``default_queue_policy``: REJECT after the SLO less a full batch), Triton's best defense against
overload. Triton's models get one raw ``tritonclient`` gRPC aio call per request. Our two contestants get requests
through a `Stack` with a `TritonBackend`: one has default settings; the other does not know the server's queue, so it
sends no batch early.

Callers are an open loop, Poisson, and latency counts from the instant at which a request was due. A contestant that
rejects requests has fewer late responses, so two figures belong together: the p99 of the responses, and the share of
all requests on time, in which a rejection counts like a late response. The p99 of all requests, in which a rejection is
an infinite latency, is printed too.

Capacity is the closed-loop throughput of 64 callers, through Triton's dynamic batching or through ours, greedy and with
two batches in flight, whichever is higher: full batches without a gap, with all costs of single requests. It is
measured again before each load. Each round measures every contestant at every load on the same arrivals; the order
rotates from round to round. The output is the medians of the rounds; ratios are to Triton's best variant, which is
chosen for each load and figure by its medians.

Client and server share this machine's cores. A process that only sleeps measures how long the machine itself stalled.
"""

import argparse
import asyncio
import contextlib
import gc
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import tritonclient.grpc.aio as triton
from _lib.figures import Figure
from onnx import TensorProto, helper, numpy_helper, save
from servers.environments import supported
from servers.triton_server import SOURCES, TritonServer
from tritonclient.utils import InferenceServerException

import streaminfer as si
from streaminfer.backends.triton import TritonBackend
from streaminfer.simulation import arrivals

BATCH = 16
FULL_BATCH_S = 0.020
SLO_S = 0.050
LOADS = (0.5, 0.7, 0.9, 1.2)
OVERLOAD = 1.2
WIDTH = 1024
SETUP_ROWS = 10
"""Rows that every batch computes in addition: the set-up cost of a batch."""
ROWS = 256
PATIENCE_S = 10.0
DELAYS_US = (0, 2_000)
# medians of one contestant's p99 differ by 5 % from run to run, shares by 0.01
P99 = Figure("p99 of responses, our batching in front of Triton", over="Triton's best dynamic batching", at_most=1.05)
LEAD = Figure(
    "lead in the share on time, our batching in front of Triton",
    over="Triton's best dynamic batching",
    form="{:+.3f}",
    at_least=-0.01,
)
ON_TIME = Figure("share on time, our batching in front of Triton", form="{:.3f}", at_least=0.80)

Array = npt.NDArray[Any]
Call = Callable[[int], Awaitable[float]]
REFUSALS = (si.DeadlineExceeded, si.Overloaded)


def write_chain(path: Path, layers: int) -> None:
    """Write a model from x float32 [n, 8] to y float32 [n, 4].

    It has ``layers`` products of (n + SETUP_ROWS, WIDTH) with (WIDTH, WIDTH).
    """
    random = np.random.default_rng(0)
    shapes = {"into": (8, WIDTH), **{f"w{layer}": (WIDTH, WIDTH) for layer in range(layers)}, "out": (WIDTH, 4)}
    held = {name: random.normal(0, shape[0] ** -0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    held |= {"zero": np.array([0]), "one": np.array([1]), "setup": np.array([SETUP_ROWS]), "end": np.array([2**62])}
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "zero"], ["first"]),
        helper.make_node("Concat", ["first"] * SETUP_ROWS + ["x"], ["rows"], axis=0),
        helper.make_node("MatMul", ["rows", "into"], ["h0"]),
        *(helper.make_node("MatMul", [f"h{layer}", f"w{layer}"], [f"h{layer + 1}"]) for layer in range(layers)),
        helper.make_node("MatMul", [f"h{layers}", "out"], ["all"]),
        helper.make_node("Slice", ["all", "setup", "end", "zero"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 8), ("y", 4))
    ]
    graph = helper.make_graph(
        nodes, "chain", values[:1], values[1:], [numpy_helper.from_array(array, name) for name, array in held.items()]
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def add_model(server: TritonServer, name: str, layers: int, batching: str = "") -> None:
    """Write the chain into a running server's repository, and load it."""
    folder = server.repository / name / "1"
    folder.mkdir(parents=True, exist_ok=True)
    write_chain(folder / "model.onnx", layers)
    shutil.copyfile(SOURCES / "mlp.py", folder / "model.py")
    (folder.parent / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: {BATCH}\n'
        'input [ { name: "x" data_type: TYPE_FP32 dims: [ 8 ] } ]\n'
        'output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]\n'
        f"{batching}\ninstance_group [ {{ kind: KIND_CPU count: 1 }} ]\n"
    )
    server.load(name)
    for pid in server.model_pids(name):
        pin(pid, model=True)


def pin(pid: int, *, model: bool) -> None:
    """Pin a model to the last core, and other processes to the other cores, so that a busy client slows no model."""
    count = os.cpu_count() or 1
    if count > 1:
        chosen = {count - 1} if model else set(range(count - 1))
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), chosen)


def rejecting_us() -> int:
    """Return the most microseconds that a request can be queued in Triton and still be on time in a full batch."""
    return round((SLO_S - 1.1 * FULL_BATCH_S) * 1e6)


def queues() -> dict[str, str]:
    """Return Triton's contestants and the settings of their queues."""
    found = {
        f"max_queue_delay {delay / 1000:g} ms": f"dynamic_batching {{ max_queue_delay_microseconds: {delay} }}"
        for delay in DELAYS_US
    }
    found[f"max_queue_delay 0, REJECT {rejecting_us() / 1000:g} ms"] = (
        "dynamic_batching { max_queue_delay_microseconds: 0 default_queue_policy { timeout_action: REJECT "
        f"default_timeout_microseconds: {rejecting_us()} allow_timeout_override: false }} }}"
    )
    return found


class ByItself(TritonBackend):
    """Backend that does not report the server's queue, so that a batch is sent when its predecessor has completed."""

    @property
    def queued_workers(self) -> None:
        return None


OURS = {"ours": TritonBackend, "ours, nothing sent ahead": ByItself}


class Raw:
    """Calls of ``tritonclient``, with inputs that are made beforehand."""

    def __init__(self, client: Any, x: Array) -> None:
        self._client = client
        self._whole = [self._input(x[start : start + BATCH]) for start in range(0, ROWS, BATCH)]
        self._rows = [self._input(x[number : number + 1]) for number in range(ROWS)]
        self._x = x

    @staticmethod
    def _input(array: Array) -> Any:
        asked = triton.InferInput("x", array.shape, "FP32")
        asked.set_data_from_numpy(array)
        return asked

    def asking(self, model: str) -> Call:
        async def call(number: int) -> float:
            try:
                answer = await self._client.infer(model, [self._rows[number % ROWS]])
            except InferenceServerException as error:
                if "UNAVAILABLE" in str(error.status()):  # Triton rejects a request that was queued for too long
                    raise si.DeadlineExceeded(str(error)) from None
                raise
            return float(answer.as_numpy("y")[0, 0])

        return call

    async def one_s(self, model: str, rows: int, times: int = 11) -> float:
        """Return the median seconds of a batch that is sent alone."""
        asked, taken = self._input(self._x[:rows]), []
        for _ in range(times):
            started = time.perf_counter()
            await self._client.infer(model, [asked])
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    async def whole(self, number: int) -> None:
        """Send a full batch to the model that our batcher uses."""
        await self._client.infer("plain", [self._whole[number % len(self._whole)]])

    async def answers(self, model: str) -> list[float]:
        """Return the model's output for each row."""
        found = [(await self._client.infer(model, [asked])).as_numpy("y")[:, 0] for asked in self._whole]
        return [float(value) for part in found for value in part]


async def saturated(call: Callable[[int], Awaitable[Any]], callers: int, lasting_s: float = 0.6) -> float:
    """Return responses per second of callers that each send the next request as soon as they have a response."""
    count, started = 0, time.perf_counter()

    async def keep_asking(number: int) -> None:
        nonlocal count
        while time.perf_counter() - started < lasting_s:
            await call(number)
            count += 1

    await asyncio.gather(*map(keep_asking, range(callers)))
    return count / (time.perf_counter() - started)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / 100


async def latencies(call: Call, trace: Array, expected: list[float]) -> Array:
    """Return seconds from when each request was due to its right response; infinite for a rejected request."""
    loop = asyncio.get_running_loop()
    measured = np.full(len(trace), np.inf)
    waiting: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []

    async def request(number: int, due: float) -> None:
        try:
            answer = await call(number)
        except REFUSALS:
            return
        measured[number] = loop.time() - due
        if abs(answer - expected[number % ROWS]) > 1e-3:
            raise RuntimeError(f"request {number}: expected {expected[number % ROWS]}, got {answer}")

    def done(task: asyncio.Task[None]) -> None:
        waiting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            failures.append(error)

    origin = loop.time() + 0.01
    for number, due in enumerate((trace + origin).tolist()):
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        task = asyncio.create_task(request(number, due))
        waiting.add(task)
        task.add_done_callback(done)
    if waiting:
        _, endless = await asyncio.wait(waiting, timeout=PATIENCE_S)
        if endless:
            raise RuntimeError(f"{len(endless)} requests have no end after {PATIENCE_S} s")
    if failures:
        raise failures[0]
    return measured


HEARTBEAT = """
import select, sys, time
worst, late, count, begun = 0.0, 0, 0, time.perf_counter()
while not select.select([sys.stdin], [], [], 0)[0]:
    due = time.perf_counter() + 0.005
    time.sleep(0.005)
    by = time.perf_counter() - due
    count += 1
    late += by > 0.005
    worst = max(worst, by)
print(count, late, worst)
"""


def stolen_s() -> float:
    """Return seconds of CPU that the hypervisor gave to other machines, all cores together."""
    return int(Path("/proc/stat").read_text().split(maxsplit=10)[8]) / 100


@contextlib.contextmanager
def heartbeat() -> Iterator[None]:
    """Measure how long the machine stalls a process that only sleeps, and print it at the end."""
    stolen, started = stolen_s(), time.perf_counter()
    beating = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HEARTBEAT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield
    finally:
        said, _ = beating.communicate("\n")
    beats, late, worst = said.split()
    print(
        f"the machine's own stalls: of {beats} beats of 5 ms {late} came more than 5 ms late, the worst by "
        f"{float(worst) * 1e3:.0f} ms; {stolen_s() - stolen:.1f} s of {time.perf_counter() - started:.0f} s stolen"
    )


@attrs.frozen
class Figures:
    """Measurements of all contestants, one entry per round."""

    p99: dict[tuple[str, float], list[float]]
    p99_of_all: dict[tuple[str, float], list[float]]
    share: dict[tuple[str, float], list[float]]

    @classmethod
    def of(cls, names: list[str]) -> "Figures":
        keys = [(name, load) for name in names for load in LOADS]
        return cls({key: [] for key in keys}, {key: [] for key in keys}, {key: [] for key in keys})

    def add(self, name: str, load: float, measured: Array) -> None:
        answered = measured[np.isfinite(measured)]
        self.p99[name, load].append(float(np.quantile(answered, 0.99, method="higher")))
        self.p99_of_all[name, load].append(float(np.quantile(measured, 0.99, method="higher")))
        self.share[name, load].append(float((measured <= SLO_S).mean()))

    def best(self, names: list[str], load: float) -> tuple[str, str]:
        """Return the contestant with the best median p99, and the one with the best median share."""
        return (
            min(names, key=lambda name: statistics.median(self.p99[name, load])),
            max(names, key=lambda name: statistics.median(self.share[name, load])),
        )


def report(figures: Figures, theirs: list[str], ours: list[str]) -> bool:
    """Print the table, and our first contestant beside Triton's best; return whether ours meets every bar."""
    print(f"\n{'p99 in ms, of all; share on time':34}" + "".join(f"{f'at {load}×':>23}" for load in LOADS))
    for name in (*theirs, *ours):
        cells = (
            f"{statistics.median(figures.p99[name, load]) * 1e3:9.1f}, "
            f"{statistics.median(figures.p99_of_all[name, load]) * 1e3:5.1f} "
            f"{statistics.median(figures.share[name, load]):6.3f}"
            for load in LOADS
        )
        print(f"{name:34}{''.join(cells)}")
    plain = [name for name in theirs if "REJECT" not in name]
    own, good = ours[0], True
    for load in LOADS:
        fastest, timeliest = figures.best(theirs, load)
        case = f"{load} of capacity"
        times = [a / b for a, b in zip(figures.p99[own, load], figures.p99[fastest, load], strict=True)]
        fastest_ms = statistics.median(figures.p99[fastest, load]) * 1e3
        good &= P99.report(times, case=case, note=f"Triton {fastest_ms:.1f} ms, {fastest}")
        shares = figures.share[own, load]
        best = statistics.median(figures.share[timeliest, load])
        ahead = [a - b for a, b in zip(shares, figures.share[timeliest, load], strict=True)]
        good &= LEAD.report(ahead, case=case, note=f"Triton {best:.3f}, {timeliest}")
        if load == OVERLOAD:
            unlimited = statistics.median(figures.share[figures.best(plain, load)[1], load])
            note = f"Triton {best:.3f} with its best settings, {unlimited:.3f} without REJECT"
            good &= ON_TIME.report(shares, case=case, note=note)
    return good


async def measure(server: TritonServer, options: argparse.Namespace) -> bool:
    x = np.random.default_rng(1).normal(size=(ROWS, 8)).astype(np.float32)
    async with triton.InferenceServerClient(server.grpc_url) as client, contextlib.AsyncExitStack() as stacks:
        raw = Raw(client, x)
        layers = 4
        for _ in range(3):
            add_model(server, "plain", layers)
            await raw.one_s("plain", BATCH)
            layers = max(1, round(layers * FULL_BATCH_S / await raw.one_s("plain", BATCH)))
        add_model(server, "plain", layers)
        one, full = await raw.one_s("plain", 1), await raw.one_s("plain", BATCH)
        print(
            f"model: {one * 1e3:.1f} ms for one row, {full * 1e3:.1f} ms for {BATCH}, one batch at a time; "
            f"SLO {SLO_S * 1e3:g} ms"
        )
        calls: dict[str, Call] = {}
        for number, (name, batching) in enumerate(queues().items()):
            add_model(server, f"dynamic{number}", layers, batching)
            calls[name] = raw.asking(f"dynamic{number}")
        theirs = list(calls)
        batchers = {}
        for name, backend in OURS.items():
            batcher = batchers[name] = si.AdaptiveBatcher(max_batch_size=BATCH, slo_s=SLO_S, max_queue_size=10**5)
            service = await stacks.enter_async_context(si.Stack(batcher, backend(server.grpc_url, "plain")))
            calls[name] = asking(service, x)
        expected = await raw.answers("plain")
        for call in calls.values():
            for size in (1, 2, 4, 8, 12, BATCH) * 3:
                await asyncio.gather(*(call(number) for number in range(size)), return_exceptions=True)
        gc.collect()
        gc.freeze()
        figures = Figures.of(list(calls))
        batcher = si.AdaptiveBatcher(max_batch_size=BATCH, policy="greedy", max_in_flight=2)
        greedy = asking(await stacks.enter_async_context(si.Stack(batcher, TritonBackend(server.grpc_url, "plain"))), x)
        reached: dict[str, list[float]] = {"whole batches": [], "Triton's": [], "ours": []}
        (model,), spent = server.model_pids("plain"), [0.0, 0.0]
        with heartbeat():
            for number in range(options.rounds):
                names = list(calls)
                turned = names[number % len(names) :] + names[: number % len(names)]
                for load in LOADS:
                    wall, cpu = time.perf_counter(), cpu_s(model)
                    reached["whole batches"].append(BATCH * await saturated(raw.whole, 2))
                    spent = [spent[0] + time.perf_counter() - wall, spent[1] + cpu_s(model) - cpu]
                    reached["Triton's"].append(await saturated(calls[theirs[0]], 4 * BATCH))
                    reached["ours"].append(await saturated(greedy, 4 * BATCH))
                    rate = load * max(reached["Triton's"][-1], reached["ours"][-1])
                    trace = arrivals.poisson(rate, int(rate * options.seconds), number)
                    for name in turned:
                        gc.collect()
                        figures.add(name, load, await latencies(calls[name], trace, expected))
        print(
            f"the model had {spent[1] / spent[0]:.0%} of a core while whole batches were asked of it, two in flight"
            + (": neighbors disturb these figures, measure again" if spent[1] < 0.93 * spent[0] else "")
        )
        rates = ", ".join(f"{name} {statistics.median(rates):.0f}" for name, rates in reached.items())
        print(f"requests a second at saturation: {rates}; {options.rounds} rounds of {options.seconds:g} s")
        for name, batcher in batchers.items():
            found = batcher.statistics()
            print(f"{name}: {found.pipelined} of {found.batches} batches pipelined")
        return report(figures, theirs, list(OURS))


def asking(service: Any, x: Array) -> Call:
    rows = list(x)

    async def call(number: int) -> float:
        return float((await service(rows[number % ROWS]))[0])

    return call


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    if not supported():
        print("no Triton for this machine: it is a wheel for Linux on x86-64")
        return 2
    si.warmup()
    with TritonServer(["mlp"]) as server:
        for pid in (os.getpid(), server.pid):
            pin(pid, model=False)
        return 0 if asyncio.run(measure(server, options)) else 1


if __name__ == "__main__":
    sys.exit(main())
