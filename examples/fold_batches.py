"""Fold the convolutions of a voice detector, and measure the time of a batch before and after.

Run it from the root of a checkout. It needs the extra ``fold``. This command made `assets/silero_vad_16k_folded.onnx`:

    python examples/fold_batches.py --target examples/assets/silero_vad_16k_folded.onnx
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from streaminfer.backends import FoldedModel, fold_batch

MODEL = Path(__file__).parent / "assets" / "silero_vad_16k_op15.onnx"
SAMPLES = 576
"""Samples of an input: 64 of the previous chunk, and 512 new ones."""
SIZES = (1, 2, 4, 8, 16, 32, 64)
ROUNDS = 30


def fold(target: Path) -> FoldedModel:
    """Write the folded voice detector."""
    return fold_batch(
        MODEL,
        target,
        example={"input": np.zeros(SAMPLES, np.float32), "state": np.zeros((2, 128), np.float32)},
        batch_axes={"state": 1, "stateN": 1},
        shared_inputs={"sr": np.array(16_000)},
    )


def load(path: Path) -> ort.InferenceSession:
    """Return a session with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options)


def measure(sessions: list[ort.InferenceSession], rows: int) -> list[float]:
    """Return the median microseconds per row in a batch for each session; the sessions take turns."""
    inputs = {
        "input": 0.1 * np.random.default_rng(rows).standard_normal((rows, SAMPLES)).astype(np.float32),
        "state": np.zeros((2, rows, 128), np.float32),
        "sr": np.array(16_000),
    }
    took: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for session, times in zip(sessions, took, strict=True):
            began = time.perf_counter()
            session.run(None, inputs)
            times.append(time.perf_counter() - began)
    return [1e6 * statistics.median(times) / rows for times in took]


def main(arguments: list[str] | None = None) -> list[list[float]]:
    """Fold the model, and print the time per row before and after."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", type=Path, help="where the folded model goes, instead of a temporary file")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        folded = fold(options.target or Path(folder) / "folded.onnx")
        print(
            f"{len(folded.folded)} convolutions now run once a batch; "
            f"the largest difference is {folded.largest_difference:.0e}"
        )
        sessions = [load(MODEL), load(folded.path)]
        rows = [measure(sessions, size) for size in SIZES]
    print("rows  µs a row  folded   ratio")
    for size, (before, after) in zip(SIZES, rows, strict=True):
        print(f"{size:4d}  {before:8.1f}  {after:6.1f}  {after / before:6.2f}")
    return rows


if __name__ == "__main__":
    main()
