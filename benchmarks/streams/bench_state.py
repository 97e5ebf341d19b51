"""Recurrent models batched across streams: live streams on time, and the cost of their states.

    python benchmarks/run.py state [--seconds 2] [--rounds 3] [--only copies | steps | cpu | live]

*copies*: the states of 32 streams gathered into a batch and written back to the arena, over ``memcpy`` of as many
bytes.

*steps*: whole steps of a model without computation, with 4 MB of state per stream, for three orders: the same streams
again, in another order, and other streams; and the memory that Python allocates per step.

*cpu*: CPU per chunk through silero's voice detector, in the session's thread and on the event loop, with enough callers
to fill batches, over the bare session in a loop. It measures a core even if other processes use it too.

*live*: microphones that send a chunk every 32 ms to silero's voice detector, like `voice`, but without `StreamSession`
and not on a single core: the session computes on one core, and the event loop runs on another. The baselines are the
same session without batches, the bare session in a loop with batches of 32 and of one, and the cost per chunk without a
model: the driver, and a future.
"""

import argparse
import asyncio
import contextlib
import functools
import statistics
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from _lib.figures import Figure
from _lib.live_audio import CHUNK_S, Play, Source, find_capacity, load_pcm, serve_streams

import streaminfer as si
from streaminfer.protocols import ExampleInputs
from streaminfer.streams import StatefulBackend
from streaminfer.streams.state.layout import StateTensor

ASSETS = Path(__file__).parents[2] / "examples" / "assets"
MODEL = ASSETS / "silero_vad_16k_op15.onnx"
F32 = np.float32
RATE = np.array(16_000, np.int64)
ROWS = 32
GATHERED = Figure("states of 32 streams gathered into a batch", over="memcpy of as many bytes", at_most=1.5)
WRITTEN = Figure("states of 32 streams written back from a batch", over="memcpy of as many bytes", at_most=1.5)
SAME_STREAMS = Figure(
    "step of 32 streams that shared the step before, 4 MB of state each",
    over="memcpy of 32 states",
    form="{:.3f}×",
    at_most=0.1,
)
COPIED = Figure(
    "step of 32 streams whose states must be copied, 4 MB each", over="memcpy of the states copied", at_most=1.5
)
ALLOCATED = Figure("states of 4 MB for which Python allocates memory in 5 steps", form="{:.0f}", at_most=0)
SESSION_BATCHED = Figure(
    "chunks of silero per CPU second of the session's thread, batched", over="unbatched", at_least=2.2
)
SESSION_BARE = Figure(
    "chunks of silero per CPU second of the session's thread, StatefulBackend",
    over="the bare session in batches of 32",
    at_least=0.85,
)
ALL_BATCHED = Figure("chunks of silero per CPU second, event loop included, batched", over="unbatched")
ALL_BARE = Figure(
    "chunks of silero per CPU second, event loop included, StatefulBackend", over="the bare session in batches of 32"
)


def measure_copies() -> None:
    """Report the copies of the kernel alone."""
    print()
    for case, shape, axis in [
        ("1 KB each", (2, 128), 1),
        ("16 KB each", (4096,), 0),
        ("256 KB each", (65_536,), 0),
        ("4 MB each", (1 << 20,), 0),
        ("4 MB each, batch axis 1", (2, 1 << 19), 1),
    ]:
        tensor = StateTensor("s", "t", shape, np.dtype(F32), axis, np.zeros(shape, F32))
        arena, batch = tensor.new_arena(2 * ROWS), np.ones(tensor.batch_shape(ROWS), F32)
        arena[:] = 1
        slots, rows = np.random.default_rng(1).permutation(2 * ROWS)[:ROWS].tolist(), list(range(ROWS))
        here, there, plain = tensor.in_arena(arena), tensor.in_batch(batch), np.ones_like(batch)
        calls: list[Callable[[], object]] = [
            functools.partial(np.copyto, batch, plain),
            functools.partial(there.copy_from, here, slots, rows),
            functools.partial(here.copy_from, there, rows, slots),
        ]
        shortest = [float("inf")] * 3
        count = max(1, (1 << 21) // batch.nbytes)
        for _ in range(20):  # in turn, because other processes use the memory too
            for position, call in enumerate(calls):
                began = time.perf_counter()
                for _ in range(count):
                    call()
                shortest[position] = min(shortest[position], (time.perf_counter() - began) / count)
        copy_s, gather_s, back_s = shortest
        GATHERED.report(gather_s / copy_s, case=case, note=f"memcpy {copy_s * 1e6:.1f} µs")
        WRITTEN.report(back_s / copy_s, case=case)


class Handing:
    """Model that returns outputs made in advance, so that the whole cost of a step is ours."""

    returns_new_arrays = True

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.states = [np.ones((ROWS, *shape), F32) for _ in range(6)]
        self.y = np.zeros(ROWS, F32)
        self.turn = 0

    def example_inputs(self) -> ExampleInputs:
        return ExampleInputs({"x": np.zeros((), F32), "state": np.zeros(self.shape, F32)}, self.infer)

    async def infer(self, batch: Any) -> Any:
        _ = batch.inputs
        self.turn = (self.turn + 1) % len(self.states)
        return {"y": self.y, "next": self.states[self.turn]}


def measure_steps() -> None:
    """Report whole steps of the backend."""
    shape = (1 << 20,)
    backend = Handing(shape)
    model = StatefulBackend(backend, state={"state": "next"})
    x = np.zeros(ROWS, F32)
    rng = np.random.default_rng(2)
    names = [list(range(ROWS)), list(range(ROWS, 2 * ROWS))]

    def batch(order: Sequence[int]) -> si.Batch:
        return si.Batch(x, [si.Request(None, stream_id=k) for k in order])

    same = [batch(names[0])]
    shuffled = [batch([int(k) for k in rng.permutation(names[0])]) for _ in range(8)]
    mixed = [batch([int(k) for k in rng.permutation(2 * ROWS)[:ROWS]]) for _ in range(16)]
    loop = asyncio.new_event_loop()

    def run(batches: Sequence[si.Batch]) -> Callable[[], None]:
        turn = 0

        def once() -> None:
            nonlocal turn
            turn += 1
            loop.run_until_complete(model.infer(batches[turn % len(batches)]))

        return once

    other = np.ones((ROWS, *shape), F32)
    print()
    for figure, case, batches in [
        (SAME_STREAMS, "", same),
        (COPIED, "the streams of the step before in another order", shuffled),
        (COPIED, "32 of 64 at random", mixed),
    ]:
        once = run(batches)
        for _ in range(20):
            once()
        copied = model.statistics().copied_rows
        took, plain = [], []
        for turn in range(48):
            began = time.perf_counter()
            once()
            between = time.perf_counter()
            np.copyto(other, backend.states[turn % len(backend.states)])
            took.append(between - began)
            plain.append(time.perf_counter() - between)
        rows = (model.statistics().copied_rows - copied) / len(took) / ROWS
        took_s, copy_s = statistics.median(took), statistics.median(plain)
        tracemalloc.start()
        once()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(5):
            once()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        note = f"{took_s * 1e3:.3f} ms, {rows * ROWS:.0f} states copied"
        figure.report(took_s / copy_s / (rows or 1), case=case, note=note)
        state_bytes = 4 * shape[0]
        new = peak - before
        ALLOCATED.report(
            new // state_bytes,
            case=case or "the streams of the step before in the same order",
            note=f"{new / 1024:.0f} KB",
        )
    loop.close()


def detector() -> StatefulBackend:
    backend = si.OnnxBackend(
        MODEL,
        batch_axes={"state": 1, "stateN": 1},
        shared_inputs={"sr": RATE},
        example={"input": np.zeros(576, F32), "state": np.zeros((2, 128), F32)},
    )
    return StatefulBackend(backend, state={"state": "stateN"}, context={"input": 64}, max_streams=8192)


def bare_session() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(MODEL, options)


def bare_rate(rows: int, seconds: float) -> float:
    """Return the chunks per second of the bare session in a loop."""
    session = bare_session()
    feed = {"input": np.zeros((rows, 576), F32), "state": np.zeros((2, rows, 128), F32), "sr": RATE}
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        _, feed["state"] = session.run(None, feed)
        done += rows
    return done / (time.perf_counter() - began)


def bare_cpu_s(rows: int, runs: int) -> float:
    """Return the CPU seconds per chunk of the bare session in a loop."""
    session = bare_session()
    feed = {"input": np.zeros((rows, 576), F32), "state": np.zeros((2, rows, 128), F32), "sr": RATE}
    began = time.process_time()
    for _ in range(runs):
        _, feed["state"] = session.run(None, feed)
    return (time.process_time() - began) / runs / rows


async def closed_cpu_s(chunks: Sequence[Any], callers: int, max_batch_size: int, seconds: float) -> tuple[float, float]:
    """Return the CPU seconds per chunk of the event loop's and of the session's thread; callers are a closed loop."""
    batcher = si.AdaptiveBatcher(max_batch_size=max_batch_size, max_queue_size=16_384)
    async with si.Stack(batcher, detector()) as service:
        served, stopped = 0, False

        async def microphone(stream: int) -> None:
            nonlocal served
            while not stopped:
                await service(chunks[(stream + served) % len(chunks)], stream_id=stream)
                served += 1

        callers_of = [asyncio.ensure_future(microphone(stream)) for stream in range(callers)]
        await asyncio.sleep(0.2)
        before, mine, cpu = served, time.thread_time(), time.process_time()
        while time.process_time() - cpu < seconds:
            await asyncio.sleep(0.05)
        mine, cpu = time.thread_time() - mine, time.process_time() - cpu
        count = served - before
        stopped = True
        await asyncio.gather(*callers_of)
        return mine / count, (cpu - mine) / count


def measure_cpu(seconds: float, rounds: int) -> None:
    """Report the CPU per chunk of the session and of the bare session, in turn."""
    chunks = [chunk.astype(F32) / F32(32768) for chunk in load_pcm()]
    found: list[tuple[float, ...]] = []
    for _ in range(rounds):
        bare = bare_cpu_s(ROWS, 300), bare_cpu_s(1, 3000)
        batched = asyncio.run(closed_cpu_s(chunks, 160, 64, seconds))
        unbatched = asyncio.run(closed_cpu_s(chunks, 4, 1, seconds))
        found.append((*bare, *batched, *unbatched))
    many, one, loop, session, loop_1, session_1 = (statistics.median(column) for column in zip(*found, strict=True))
    print("\n| CPU a chunk, median | event loop | session's thread | streams of 32 ms a core, of the session's |")
    print("|---|---|---|---|")
    for name, rest, own in [
        ("bare session in a loop, batches of 32", 0.0, many),
        ("bare session in a loop, one at a time", 0.0, one),
        ("StatefulBackend, 160 streams, batches up to 64", loop, session),
        ("StatefulBackend, batches of one", loop_1, session_1),
    ]:
        print(f"| {name} | {rest * 1e6:.1f} µs | {own * 1e6:.1f} µs | {CHUNK_S / own:.0f} |")
    print(f"\nthe core of the session, over the bare session: {one / session:.2f}")
    SESSION_BATCHED.report([session_1 / session for _, _, _, session, _, session_1 in found])
    SESSION_BARE.report([many / session for many, _, _, session, _, _ in found])
    ALL_BATCHED.report([(loop_1 + session_1) / (loop + session) for _, _, loop, session, loop_1, session_1 in found])
    ALL_BARE.report([many / (loop + session) for many, _, loop, session, _, _ in found])


@contextlib.asynccontextmanager
async def calls(max_batch_size: int) -> AsyncIterator[Play]:
    """Yield a player of streams that calls a stack for each chunk."""
    batcher = si.AdaptiveBatcher(max_batch_size=max_batch_size, max_queue_size=16_384)
    async with si.Stack(batcher, detector()) as service:

        async def play(source: Source, answered: Callable[[int], None]) -> None:
            name = object()
            async for captured_ns, chunk in source:
                await service(chunk.astype(F32) / F32(32768), stream_id=name)
                answered(captured_ns)

        yield play


def answer(future: asyncio.Future[None]) -> None:
    """Wake the waiter of a future, unless the future was cancelled."""
    if not future.done():
        future.set_result(None)


async def play_nothing(source: Source, answered: Callable[[int], None]) -> None:
    """Play a stream at the cost of any way: chunks as numbers, a future, and the loop's turn that wakes its waiter."""
    loop = asyncio.get_running_loop()
    async for captured_ns, chunk in source:
        _ = chunk.astype(F32) / F32(32768)
        done = loop.create_future()
        loop.call_soon(answer, done)
        await done
        answered(captured_ns)


async def most_streams(max_batch_size: int, seconds: float) -> tuple[int, float]:
    """Return the largest number of streams that are on time, and the CPU seconds per chunk at this number."""
    async with calls(max_batch_size) as play:
        streams, load = await find_capacity(play, seconds)
        return streams, load.cpu_s


def measure_live(seconds: float, rounds: int) -> None:
    """Print the live streams of the batched, the unbatched and the bare session, in turn."""
    found: dict[str, list[float]] = {"batched": [], "unbatched": [], "bare 32": [], "bare 1": []}
    print("\n| round | batched | CPU a chunk | unbatched | CPU a chunk | bare session, 32 | bare, 1 | no model, CPU |")
    print("|---|---|---|---|---|---|---|---|")
    for number in range(rounds):
        many, one = (bare_rate(rows, 1.0) * CHUNK_S for rows in (ROWS, 1))
        batched, cost_s = asyncio.run(most_streams(64, seconds))
        unbatched, other_cost_s = asyncio.run(most_streams(1, seconds))
        floor_s = asyncio.run(serve_streams(play_nothing, max(batched, 16), seconds)).cpu_s
        many, one = ((a + bare_rate(rows, 1.0) * CHUNK_S) / 2 for a, rows in ((many, ROWS), (one, 1)))
        for name, value in zip(found, (batched, unbatched, many, one), strict=True):
            found[name].append(value)
        print(
            f"| {number + 1} | {batched} | {cost_s * 1e6:.1f} µs | {unbatched} | {other_cost_s * 1e6:.1f} µs | "
            f"{many:.0f} | {one:.0f} | {floor_s * 1e6:.1f} µs |",
            flush=True,
        )
    middle = {name: statistics.median(values) for name, values in found.items()}
    print(f"\nbatched over unbatched: {middle['batched'] / max(middle['unbatched'], 1):.2f}")
    print(f"batched over the bare session, batches of 32: {middle['batched'] / middle['bare 32']:.2f}")


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each load is held")
    parser.add_argument("--rounds", type=int, default=3, help="of the live streams")
    parser.add_argument("--only", choices=["copies", "steps", "cpu", "live"], help="one part")
    options = parser.parse_args()
    if options.only in (None, "copies"):
        measure_copies()
    if options.only in (None, "steps"):
        measure_steps()
    if options.only in (None, "cpu"):
        measure_cpu(options.seconds, options.rounds)
    if options.only in (None, "live"):
        measure_live(options.seconds, options.rounds)


if __name__ == "__main__":
    main()
