"""Check and measurement of the GPU providers of OnnxBackend, on a machine with an NVIDIA GPU.

python benchmarks/backends/gpu.py                     CUDA, and TensorRT where it is installed
python benchmarks/backends/gpu.py --triton HOST:PORT       also a model that a Triton with a GPU serves (--triton-model)
python benchmarks/backends/gpu.py --providers CPUExecutionProvider      every measurement on the CPU: checks this
program only

The exit status is 2 without a GPU or if a provider does not load, 1 if a response is wrong, and 0 if all are right.
Figures are medians over batches, one at a time, from a batch to its rows on the host.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

import streaminfer as si
from streaminfer.backends.onnx.binding import Binding
from streaminfer.backends.onnx.providers import cuda_provider, tensorrt_provider

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
MODEL = Path(__file__).parents[2] / "examples" / "assets" / "blaze_front.onnx"
# parts of an output's largest value: TF32, and fused and reordered sums, change results
TOLERANCE = {"fp32": 2e-3, "fp16": 2e-2}
Array = npt.NDArray[Any]
Feed = dict[str, Array]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--providers", nargs="+", choices=(CPU, CUDA, TENSORRT))
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="of TensorRT")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--device-id", type=int, default=0)
    parser.add_argument("--triton", help="host:port of the gRPC endpoint")
    parser.add_argument("--triton-model", help="the same model there; its file's name by default")
    options = parser.parse_args(arguments)
    there = onnxruntime.get_available_providers()
    chosen = options.providers or [one for one in (CUDA, TENSORRT) if one in there]
    if missing := [one for one in chosen if one not in there] or ([] if chosen else [CUDA]):
        print(f"no GPU was checked: this onnxruntime has no {', '.join(missing)}, only {', '.join(there)}")
        print("with an NVIDIA GPU: pip uninstall onnxruntime; pip install onnxruntime-gpu")
        return 2
    if chosen == [CPU] and not options.triton:
        print("CPU only: this checks the program, not a GPU\n")
    return Check(options).run(chosen)


class Check:
    """One run of the program."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._sizes: list[int] = sorted(options.batch_sizes)
        self._wrong = 0
        self._reference = si.OnnxBackend(options.model, threads=None)
        rng = np.random.default_rng(0)
        self._rows = {
            spec.name: tuple(size if isinstance(size, int) else 1 for size in spec.row_shape)
            for spec in self._reference.inputs
        }
        kinds = {spec.name: spec.dtype for spec in self._reference.inputs}
        self._feeds: dict[int, Feed] = {
            size: {name: rng.random((size, *row)).astype(kinds[name]) for name, row in self._rows.items()}
            for size in self._sizes
        }

    def run(self, providers: Sequence[str]) -> int:
        expected = {size: asyncio.run(self._answer(self._reference, size)) for size in self._sizes}
        not_checked: list[str] = []
        for provider in providers:
            with tempfile.TemporaryDirectory(prefix="streaminfer-engines-") as cache:
                try:
                    self._provider(provider, cache, expected)
                except ValueError as error:
                    print(f"  NOT CHECKED: {error}")
                    not_checked.append(provider)
        if self._options.triton:
            self._triton(expected)
        print(f"\n{self._wrong} wrong" if self._wrong else "\nall answers right that came")
        if not_checked:
            print(f"not checked, since they do not load: {', '.join(not_checked)}")
        return 1 if self._wrong else 2 if not_checked else 0

    def _provider(self, provider: str, cache: str, expected: dict[int, Any]) -> None:
        print(f"{provider}, {self._options.model.name}")
        list_of_options = self._provider_options(provider, cache)
        ways: tuple[Binding, ...] = ("off", "pageable") if provider == CPU else ("off", "pageable", "pinned")
        for number, binding in enumerate(ways):
            started = time.perf_counter()
            backend = si.OnnxBackend(
                self._options.model, providers=list_of_options, binding=binding, warmup=self._sizes
            )
            asyncio.run(self._started(backend))
            if number < 2:
                kept = "cold" if number == 0 else "warm, with the engines of the first"
                print(f"  load and warm-up, {kept}: {time.perf_counter() - started:.2f} s")
            self._measure(f"binding={binding!r}", backend, expected, provider)
        if provider == CUDA:
            graphs: list[Any] = [cuda_provider(device_id=self._options.device_id, cuda_graph=True), CPU]
            backend = si.OnnxBackend(self._options.model, providers=graphs, warmup=self._sizes)
            asyncio.run(self._started(backend))
            self._measure("cuda_graph=True", backend, expected, provider)

    def _provider_options(self, provider: str, cache: str) -> list[Any]:
        device = self._options.device_id
        cuda, cpu = cuda_provider(device_id=device), CPU
        if provider == CPU:
            return [cpu]
        if provider == CUDA:
            return [cuda, cpu]
        tensorrt = tensorrt_provider(
            cache,
            batch_sizes=self._sizes,
            rows=self._rows,
            precision=self._options.precision,
            device_id=device,
        )
        return [tensorrt, cuda, cpu]

    def _triton(self, expected: dict[int, Any]) -> None:
        from streaminfer.backends.triton import TritonBackend

        name = self._options.triton_model or self._options.model.stem
        print(f"Triton at {self._options.triton}, model {name}")
        self._measure("gRPC", TritonBackend(self._options.triton, name, insecure=True), expected, TENSORRT)

    def _measure(self, what: str, backend: Any, expected: dict[int, Any], provider: str) -> None:
        results = asyncio.run(self._timed(backend))
        tolerance = TOLERANCE[self._options.precision if provider == TENSORRT else "fp32"]
        for size, (rows, times) in results.items():
            error = _difference(rows, expected[size])
            verdict = "ok" if error <= tolerance else f"WRONG, at most {tolerance:g} allowed"
            self._wrong += error > tolerance
            median, slow = statistics.median(times), float(np.quantile(times, 0.9))
            print(
                f"  {what:20} {size:4} rows  {median * 1e3:8.2f} ms  p90 {slow * 1e3:8.2f} ms  "
                f"{size / median:9.0f} rows/s  off by {error:.1e} {verdict}"
            )

    async def _timed(self, backend: Any) -> dict[int, tuple[Any, list[float]]]:
        await backend.start()
        try:
            results = {}
            for size in self._sizes:
                batch = self._batch(size)
                times = []
                rows = await backend.infer(batch)
                for _ in range(self._options.batches):
                    started = time.perf_counter()
                    rows = await backend.infer(batch)
                    times.append(time.perf_counter() - started)
                results[size] = rows, times
            return results
        finally:
            await backend.stop()

    async def _answer(self, backend: Any, size: int) -> Any:
        await backend.start()
        try:
            return await backend.infer(self._batch(size))
        finally:
            await backend.stop()

    async def _started(self, backend: Any) -> None:
        await backend.start()
        await backend.stop()

    def _batch(self, size: int) -> si.Batch:
        feed = self._feeds[size]
        inputs = feed if len(feed) > 1 else next(iter(feed.values()))
        return si.Batch(inputs, [si.Request(None) for _ in range(size)])


def _difference(rows: Sequence[Any], expected: Sequence[Any]) -> float:
    """Return the largest difference, in parts of an output's largest value.

    The difference is infinite if shapes differ or a value is not finite.
    """
    worst = 0.0
    for row, right in zip(rows, expected, strict=True):
        pairs = [(row[name], right[name]) for name in right] if isinstance(right, dict) else [(row, right)]
        for got, wanted in pairs:
            if np.shape(got) != np.shape(wanted) or not np.isfinite(got).all():
                return float("inf")
            scale = max(float(np.abs(wanted).max(initial=0.0)), 1e-6)
            worst = max(worst, float(np.abs(np.asarray(got, np.float64) - wanted).max(initial=0.0)) / scale)
    return worst


if __name__ == "__main__":
    sys.exit(main())
