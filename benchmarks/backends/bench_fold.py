"""Batches on models with convolutions folded by `fold_batch`, over the originals, in turn.

    python benchmarks/run.py fold [--rounds 5]

First silero's voice detector, by the size of a batch. Then single convolutions of 128 channels, 32 rows, by the length
of a row: all of these are folded, even those that `fold_batch` leaves unchanged, to check its rule.
"""

import argparse
import itertools
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import fold_batches
import numpy as np
import onnxruntime as ort
from _lib.figures import Figure
from onnx import TensorProto, helper, numpy_helper

from streaminfer.backends import fold_batch
from streaminfer.backends.onnx import fold_layout

CHANNELS, ROWS, RUNS = 128, 32, 30
LENGTHS = (1, 2, 4, 8, 16, 32, 64)
KINDS = {"3 taps": (3, 1, 1), "3 taps, stride 2": (3, 2, 1), "1 tap": (1, 1, 0)}
"""Taps, stride and zeros on each side, by name."""
FOLDED = Figure("time of a row of silero with folded convolutions", over="the original model")


def measure_detector(rounds: int, folder: Path) -> None:
    """Print the time of a row of silero, by the size of the batch."""
    sessions = [fold_batches.load(path) for path in (fold_batches.MODEL, fold_batches.fold(folder / "f.onnx").path)]
    print("\nsilero:")
    for rows in fold_batches.SIZES:
        found = [fold_batches.measure(sessions, rows) for _ in range(rounds)]
        before, after = (statistics.median(column) for column in zip(*found, strict=True))
        note = f"{before:.1f} µs originally, {after:.1f} µs folded"
        FOLDED.report([new / old for old, new in found], case=f"batches of {rows}", note=note)


def make_convolution(taps: int, stride: int, zeros: int, length: int) -> bytes:
    """Return a model of one convolution."""
    weights = np.random.default_rng(0).standard_normal((CHANNELS, CHANNELS, taps)).astype(np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[stride], pads=[zeros, zeros])
    graph = helper.make_graph(
        [node],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, length])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CHANNELS, None])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def measure_lengths(rounds: int, folder: Path) -> None:
    """Print the ratio by length and kind of convolution."""
    print(f"\n{ROWS} rows, time folded over the original's (in brackets: what fold_batch leaves unchanged)")
    print(f"| length | {' | '.join(KINDS)} |\n|---|{'---|' * len(KINDS)}")
    for length in LENGTHS:
        cells = []
        for taps, stride, zeros in KINDS.values():
            model, path = make_convolution(taps, stride, zeros, length), folder / "convolution.onnx"
            example = np.zeros((CHANNELS, length), np.float32)
            try:
                fold_batch(model, path, example=example)
                pays = True
            except ValueError:
                pays = False
                copying, fold_layout.COPYING = fold_layout.COPYING, -math.inf
                try:
                    fold_batch(model, path, example=example)
                finally:
                    fold_layout.COPYING = copying
            ratio = _spread(_ratios([_load(model), _load(path.read_bytes())], example, rounds))
            cells.append(ratio if pays else f"[{ratio}]")
        print(f"| {length} | {' | '.join(cells)} |", flush=True)


def _load(model: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model, options)


def _ratios(sessions: list[ort.InferenceSession], example: np.ndarray, rounds: int) -> list[float]:
    """Return the median time of the second session over that of the first, one ratio per round."""
    x = np.stack([example + 1] * ROWS)
    ratios = []
    for _ in range(rounds):
        took: list[list[float]] = [[], []]
        for (session, times), _ in itertools.product(list(zip(sessions, took, strict=True)), range(RUNS)):
            began = time.perf_counter()
            session.run(None, {"x": x})
            times.append(time.perf_counter() - began)
        before, after = map(statistics.median, took)
        ratios.append(after / before)
    return ratios


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure the model, then single convolutions."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        measure_detector(rounds, Path(folder))
        measure_lengths(rounds, Path(folder))


if __name__ == "__main__":
    main()
