"""Memory and throughput of sessions that share their weights: ``python benchmarks/run.py sessions``.

153 MB of weights, batches of 8 from as many threads as there are sessions. Each row is a separate process; memory is
that of loading and of one run of each session. Throughput is the best of five rounds.

* *one session*: as in `OnnxBackend`, several threads run the same session.
* *a session each*: each session has its own weights.
* *add_initializer*: a session each, with weights that are in memory once; onnxruntime packs them for each session.
* *without packing*: the same with ``session.disable_prepacking``.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from streaminfer.backends import OnnxBackend

SIZE, LAYERS, ROWS = 2000, 10, 8
WAYS = ("one session", "a session each", "add_initializer", "without packing", "OnnxBackend")
ROUND_S, ROUNDS = 0.6, 5


def weights() -> list[Any]:
    rng = np.random.default_rng(0)
    matrices = (rng.standard_normal((SIZE, SIZE), np.float32) / SIZE**0.5 for _ in range(LAYERS))
    return [numpy_helper.from_array(matrix, f"w{number}") for number, matrix in enumerate(matrices)]


def make_model(path: Path) -> None:
    values = ["x", *(f"h{number}" for number in range(1, LAYERS)), "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [values[i], f"w{i}"], [values[i + 1]]) for i in range(LAYERS)],
        "layers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", SIZE))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", SIZE))],
        initializer=weights(),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def options(threads: int) -> Any:
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads, made.inter_op_num_threads = threads, 1
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return made


def load(way: str, path: str, sessions: int, threads: int) -> list[Any]:
    def session(made: Any) -> Any:
        return onnxruntime.InferenceSession(path, made, providers=["CPUExecutionProvider"])

    match way:
        case "OnnxBackend":
            backend = OnnxBackend(path, sessions=sessions, threads=threads)
            return [worker._session for worker in backend._serving.model.workers]
        case "one session":
            return [session(options(sessions * (threads - 1) + 1))] * sessions
        case "a session each":
            return [session(options(threads)) for _ in range(sessions)]
    shared = [(one.name, onnxruntime.OrtValue.ortvalue_from_numpy(numpy_helper.to_array(one))) for one in weights()]
    load.kept = shared  # type: ignore[attr-defined] # the sessions do not own the weights
    made = []
    for _ in range(sessions):
        own = options(threads)
        if way == "without packing":
            own.add_session_config_entry("session.disable_prepacking", "1")
        for name, value in shared:
            own.add_initializer(name, value)
        made.append(session(own))
    return made


def measure(way: str, path: str, sessions: int, threads: int) -> None:
    batch = {"x": np.random.default_rng(1).random((ROWS, SIZE), np.float32)}
    before = resident_mb()
    made = load(way, path, sessions, threads)
    for session in made:
        session.run(None, batch)
    grown = resident_mb() - before
    best = 0.0
    for _ in range(ROUNDS):
        counts = [0] * sessions
        started = time.perf_counter()

        def work(number: int, ends: float = started + ROUND_S, counts: list[int] = counts) -> None:
            while time.perf_counter() < ends:
                made[number].run(None, batch)
                counts[number] += 1

        workers = [threading.Thread(target=work, args=(number,)) for number in range(sessions)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = max(best, sum(counts) / (time.perf_counter() - started))
    print(f"  {sessions:>8} {threads:>7}  {way:<16} {grown:6.0f} MB {best:8.1f} batches/s", flush=True)


def main() -> None:
    print(f"{SIZE * SIZE * LAYERS * 4 / 2**20:.0f} MB of weights, {os.cpu_count()} cores, {onnxruntime.__version__}")
    print(f"  {'sessions':>8} {'threads':>7}  {'way':<16} {'memory':>9} {'throughput':>18}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.onnx"
        make_model(path)
        for sessions, threads in ((1, 1), (2, 1), (4, 1), (2, 2)):
            for way in WAYS:
                command = [sys.executable, __file__, way, str(path), str(sessions), str(threads)]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif sys.platform == "linux":
        main()
    else:
        print("reads /proc: Linux only")
