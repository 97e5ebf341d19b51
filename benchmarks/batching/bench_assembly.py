"""Assembly of batches beside ``numpy.stack``: ``python benchmarks/run.py assembly``.

Figures per row are beside their baselines, measured in alternation in the same run. Stacking is measured as in use: CPU
time in a worker thread, with batches of varying size, between allocations of a model, while the previous batch is still
in memory. Figures of padding, choosing and checking are the minimum of many repetitions.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from _lib.figures import Figure

from streaminfer._internal.own_arrays import own_arrays
from streaminfer.backends import CpuBackend
from streaminfer.batching.assembly.assembler import Assembler
from streaminfer.batching.assembly.buckets import Buckets
from streaminfer.batching.assembly.stacking import stack_column
from streaminfer.request import Batch, Request

ASSETS = Path(__file__).resolve().parents[2] / "examples" / "assets"
RNG = np.random.default_rng(0)
_HOPS = 50
COPIES = Figure("copying the outputs of a batch", form="{:.1f} µs")
COPIES_REPORTED = ("1 × 10 float32", "32 × 1,000 float32", "32 × 16,384 float32")
Assemble = Callable[[list[Any]], Any]


def least(functions: dict[str, Callable[[], Any]], *, repeat: int = 30, number: int = 20) -> dict[str, float]:
    """Return the minimum microseconds of each function; the functions run in alternation."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeat):
        for name, function in functions.items():
            started = time.perf_counter()
            for _ in range(number):
                function()
            best[name] = min(best[name], (time.perf_counter() - started) / number)
    return {name: seconds * 1e6 for name, seconds in best.items()}


def lived(assemble: Assemble, rows: list[Any], batches: int) -> float:
    """Return mean CPU microseconds per row of batches of 1 to all rows, in a thread between a model's allocations."""
    measured: list[float] = []

    def work() -> None:
        sizes = np.random.default_rng(1).integers(1, len(rows) + 1, batches)
        answers: deque[Any] = deque(maxlen=3)
        for size in sizes.tolist():
            batch = rows[:size]
            started = time.thread_time()
            inputs = assemble(batch)
            measured.append((time.thread_time() - started) / size)
            scratch = np.ones(inputs.size // 2 + 1)
            answers.append(np.full((size, 1000), scratch[0]))
            del scratch

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return float(np.mean(measured[10:])) * 1e6


def bench_stacking() -> None:
    print("Stacking 1 to n equal float32 rows, CPU µs a row, the least of 4 runs in alternation")
    print(f"  {'rows':>14} {'np.stack':>9} {'np.array':>9} {'Assembler':>9}   np.stack over it")
    for kilobytes, count in (
        (0.25, 32),
        (4, 32),
        (16, 32),
        (64, 32),
        (150, 32),
        (588, 8),
        (588, 32),
        (1200, 32),
        (3072, 32),
    ):
        rows = [RNG.random(int(kilobytes * 256), dtype=np.float32) for _ in range(count)]
        ours = Assembler(stack=True, batch_axes={}, max_batch_size=count)
        ways: dict[str, Assemble] = {"np.stack": np.stack, "np.array": np.array, "ours": ours.assemble}
        runs: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(4):
            for name, assemble in ways.items():
                runs[name].append(lived(assemble, rows, 100 if rows[0].nbytes < 1e6 else 30))
        stacked, arrayed, own = (min(figures) for figures in runs.values())
        print(f"  {count:>3} × {kilobytes:>5} KB {stacked:9.2f} {arrayed:9.2f} {own:9.2f}   {stacked / own:.2f}×")
    small = [RNG.random(64, dtype=np.float32) for _ in range(32)]
    plain = Assembler(stack=True, batch_axes={}, max_batch_size=32)
    best = least(
        {
            "np.stack": lambda: np.stack(small),
            "stack_column": lambda: stack_column(small, 0),
            "assemble": lambda: plain.assemble(small),
        }
    )
    print("  32 × 64 floats alone, µs a batch:", ", ".join(f"{name} {us:.1f}" for name, us in best.items()))


def naive_padding(rows: list[dict[str, Any]], length: int) -> dict[str, Any]:
    """Pad 1-D rows with ``numpy.pad``, and add a mask: the obvious way."""
    lengths = np.array([len(row["x"]) for row in rows])
    padded = np.stack([np.pad(row["x"], (0, length - len(row["x"]))) for row in rows])
    return {"x": padded, "m": (np.arange(length) < lengths[:, None]).astype(np.int64)}


def simple_padding(rows: list[dict[str, Any]], length: int) -> dict[str, Any]:
    """Pad 1-D rows by assignment to slices, and add a mask."""
    padded = np.zeros((len(rows), length), rows[0]["x"].dtype)
    mask = np.zeros((len(rows), length), np.int64)
    for position, row in enumerate(rows):
        padded[position, : len(row["x"])] = row["x"]
        mask[position, : len(row["x"])] = 1
    return {"x": padded, "m": mask}


def bench_padding() -> None:
    print("\nPadding 1-D rows of half to full length, with an int64 mask, µs a batch")
    print(f"  {'rows':>22} {'np.pad':>8} {'slices':>8} {'ours':>8}   slices over ours")
    kinds = ((4, 128, "int64"), (32, 64, "int64"), (32, 512, "int64"), (128, 128, "int64"), (16, 16000, "float32"))
    for count, length, dtype in kinds:
        rows = [{"x": RNG.integers(1, 99, RNG.integers(length // 2, length + 1)).astype(dtype)} for _ in range(count)]
        rows[0]["x"] = rows[0]["x"][: length // 2 + 1]
        made = Assembler(stack=True, batch_axes={}, max_batch_size=count, buckets=Buckets((length,), mask="m"))

        for way in (naive_padding(rows, length), simple_padding(rows, length)):
            assert all(np.array_equal(way[name], made.assemble(rows)[name]) for name in "xm")
        best = least(
            {
                "np.pad": partial(naive_padding, rows, length),
                "slices": partial(simple_padding, rows, length),
                "ours": partial(made.assemble, rows),
            },
            number=5,
        )
        figures = " ".join(f"{us:8.1f}" for us in best.values())
        ratio = best["slices"] / best["ours"]
        print(f"  {count:>4} × {length:>5} {dtype:<9} {figures}   {ratio:.2f}×")


def bench_choosing() -> None:
    ids = [{"input_ids": np.arange(RNG.integers(1, 257))} for _ in range(128)]
    ragged = Assembler(
        stack=True, batch_axes={}, max_batch_size=128, buckets=Buckets((32, 64, 128, 256), mask="attention_mask")
    )
    plain = Assembler(stack=True, batch_axes={}, max_batch_size=128)
    image = np.zeros((3, 8, 8))
    texts = [SimpleNamespace(inputs=row) for row in ids]
    images = [SimpleNamespace(inputs=image.copy()) for _ in range(128)]
    best = least(
        {
            "prepare, an array": lambda: plain.prepare(image),
            "prepare, ids with buckets": lambda: ragged.prepare(ids[0]),
            "bucket_of": lambda: ragged.bucket_of(ids[0]),
            "select among 128 alike": lambda: plain.select(images),
            "select among 128 in 4 buckets": lambda: ragged.select(texts),
        }
    )
    print("\nOnce a request, or once a batch, µs:")
    for name, us in best.items():
        print(f"  {name:<32}{us:8.2f}")


def bench_arrival() -> None:
    """Print the cost of copying rows into a batch: the most that a worker could save if rows are written on arrival."""
    print("\nThe copy as a share of a worker's time, batches of 8, one thread (what writing at arrival could save)")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    state = {"state": np.zeros((2, 128), np.float32)}
    chunk = {"input": np.zeros(576, np.float32)} | state
    models: dict[str, tuple[str, list[Any], dict[str, int], dict[str, Any]]] = {
        "silero VAD": ("silero_vad_16k_op15.onnx", [chunk] * 8, {"state": 1}, {"sr": np.array(16000)}),
        "BlazeFace full": (
            "blaze_full.onnx",
            [{"x": image} for image in RNG.random((8, 192, 192, 3), dtype=np.float32)],
            {},
            {},
        ),
    }
    for name, (path, rows, axes, shared) in models.items():
        session = ort.InferenceSession(ASSETS / path, options, providers=["CPUExecutionProvider"])
        made = Assembler(stack=True, batch_axes=axes, max_batch_size=8)
        only = session.get_inputs()[0].name

        def run(
            session: Any = session, rows: Any = rows, made: Any = made, shared: Any = shared, only: Any = only
        ) -> None:
            inputs = made.assemble(rows)
            session.run(None, ({only: inputs["x"]} if "x" in inputs else inputs) | shared)

        best = least({"copy": partial(made.assemble, rows), "copy and model": run}, repeat=10, number=3)
        print(
            f"  {name:<16} copy {best['copy']:8.1f} µs of {best['copy and model']:10.1f}: "
            f"{best['copy'] / best['copy and model']:.2%}"
        )
    for kilobytes in (1, 64, 588):
        rows = [RNG.random(kilobytes * 256, dtype=np.float32) for _ in range(128)]
        batch = np.zeros((32, kilobytes * 256), np.float32)

        def one_by_one(rows: list[Any] = rows, batch: Any = batch) -> None:
            for position, row in enumerate(rows):
                batch[position % 32] = row

        def together(rows: list[Any] = rows, batch: Any = batch) -> None:
            for start in range(0, 128, 32):
                for position, row in enumerate(rows[start : start + 32]):
                    batch[position] = row

        best = least({"arrival": one_by_one, "worker": together}, repeat=5, number=2)
        print(
            f"  a row of {kilobytes:>4} KB: {best['arrival'] / 128:6.2f} µs on the loop at arrival, "
            f"{best['worker'] / 128:6.2f} in the worker"
        )


def bench_output_copies() -> None:
    print("Copies of a batch's outputs, for models that may reuse their memory; µs a batch, the least of 30")
    print(f"  {'outputs':>26} {'copied':>8} {'declared':>9} {'thread: copied':>16} {'declared':>9}")
    cases: dict[str, Any] = {
        "1 × 10 float32": RNG.random((1, 10), dtype=np.float32),
        "32 × 1,000 float32": RNG.random((32, 1000), dtype=np.float32),
        "32 × 16,384 float32": RNG.random((32, 16384), dtype=np.float32),
        "32 × 150,528 float32": RNG.random((32, 150528), dtype=np.float32),
        "two of 32 × 100 float32": (RNG.random((32, 100), dtype=np.float32), RNG.random((32, 100), dtype=np.float32)),
        "list of 32 rows of 100": list(RNG.random((32, 100), dtype=np.float32)),
    }
    found: dict[str, dict[str, float]] = {}
    for name, outputs in cases.items():
        functions = {
            "copied": partial(own_arrays, outputs),
            "off": partial(_returned, outputs),
            "with": partial(_through_a_thread, outputs, copied=True),
            "without": partial(_through_a_thread, outputs, copied=False),
        }
        best = found[name] = least({key: functions[key] for key in ("copied", "off")})
        hop = least({key: functions[key] for key in ("with", "without")}, repeat=10, number=1)
        print(
            f"  {name:>26} {best['copied']:8.2f} {best['off']:9.2f} "
            f"{hop['with'] / _HOPS:16.1f} {hop['without'] / _HOPS:9.1f}"
        )
    for name in COPIES_REPORTED:
        note = f"{found[name]['off']:.1f} µs where the model declares new arrays"
        COPIES.report(found[name]["copied"], case=name, note=note)


def _returned(outputs: Any) -> Any:
    return outputs


def _through_a_thread(outputs: Any, *, copied: bool) -> None:
    async def main() -> None:
        backend = CpuBackend(partial(_ignore_inputs, outputs), copy_outputs=copied)
        batch = Batch(None, [Request(None)])
        for _ in range(_HOPS):
            await backend.infer(batch)
        await backend.stop()

    asyncio.run(main())


def _ignore_inputs(outputs: Any, _inputs: Any) -> Any:
    return outputs


if __name__ == "__main__":
    bench_stacking()
    bench_padding()
    bench_choosing()
    bench_arrival()
    bench_output_copies()
