"""Hot swap under load: ``python benchmarks/run.py reload [SWAPS]``; ends with 1 if a request was lost or wrong.

Clients in a closed loop send requests through a cache and a batcher while `OnnxBackend.reload` replaces the model; each
version multiplies by another number. *Lost*: an error. *Wrong*: a response of a version that did not serve between the
call and its response, or a response that the cache has under the fingerprint of another version. The baseline is the
same load without a swap.
"""

import asyncio
import sys
import time
from typing import Any

import numpy as np
from _lib.figures import Figure
from onnx import TensorProto, helper, numpy_helper

import streaminfer as si
from streaminfer.caching import EdgeCache

SIZE, CLIENTS, SWAPS = 512, 24, 50
PAUSE_S = 0.1
LOST = Figure("requests lost while an ONNX model is replaced under load", form="{:.0f}", at_most=0)
WRONG = Figure("wrong responses while an ONNX model is replaced under load", form="{:.0f}", at_most=0)
MIXED = Figure("cache entries under another version after an ONNX model was replaced", form="{:.0f}", at_most=0)
RATE = Figure("responses per second while an ONNX model is replaced every 0.1 s", form="{:,.0f}")


def version(factor: int) -> bytes:
    """Return the model y = factor * (x · I), with a megabyte of weights."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["y"])],
        "version",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("batch", SIZE))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", SIZE))],
        initializer=[numpy_helper.from_array(np.eye(SIZE, dtype=np.float32) * factor, "weights")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


class RecordingCache(EdgeCache):
    """Cache that records the stored values, by key."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[Any, int] = {}

    def put(self, key: Any, value: Any, **more: Any) -> bool:
        """Store a value."""
        self.stored[key] = round(float(value[0]))
        return super().put(key, value, **more)


class Drill:
    """One run of the load.

    Args:
        swaps: how often the model is replaced.
    """

    def __init__(self, swaps: int) -> None:
        self._models = [version(factor) for factor in range(1, swaps + 2)]
        self._lost: list[BaseException] = []
        self._wrong = 0
        self._latencies: list[float] = []
        self._keys: dict[Any, int] = {}
        self._ends = False
        self.rate = 0.0

    async def run(self, *, swapping: bool) -> tuple[int, int, int, int]:
        """Print a row; return the numbers of lost requests, wrong responses, mixed cache entries, and responses.

        A mixed entry is stored under the fingerprint of another version.
        """
        backend = si.OnnxBackend(self._models[0], sessions=2)
        cache = RecordingCache()
        batcher = si.AdaptiveBatcher(max_batch_size=16, max_in_flight=2)
        took: list[float] = []
        async with si.Stack(cache, batcher, backend) as stack:
            clients = [asyncio.create_task(self._client(stack, backend, number)) for number in range(CLIENTS)]
            started = time.perf_counter()
            for model in self._models[1:]:
                await asyncio.sleep(PAUSE_S)
                if swapping:
                    began = time.perf_counter()
                    await backend.reload(model)
                    took.append(time.perf_counter() - began)
            await asyncio.sleep(PAUSE_S)
            seconds = time.perf_counter() - started
            self._ends = True
            self.rate = len(self._latencies) / seconds
            await asyncio.gather(*clients)
        mixed = sum(self._keys[key] != factor for key, factor in cache.stored.items())
        p50, p99, worst = np.quantile(self._latencies, [0.5, 0.99, 1.0]) * 1e3
        print(
            f"  {len(took):>5} {len(self._latencies):>9} {len(self._lost):>5} {self._wrong:>6} {mixed:>13}"
            f" {self.rate:>11.0f} {p50:>7.2f} {p99:>7.2f} {worst:>8.2f}"
            f" {np.median(took) * 1e3 if took else 0.0:>10.1f}",
            flush=True,
        )
        for error in self._lost[:3]:
            print(f"    lost: {error!r}")
        return len(self._lost), self._wrong, mixed, len(self._latencies)

    async def _client(self, stack: Any, backend: Any, client: int) -> None:
        number = 0
        while not self._ends:
            number += 1
            inputs = np.zeros(SIZE, np.float32)
            inputs[:3] = 1, client, number
            before = backend.fingerprint_changes() + 1
            self._keys[stack.inner.key_of(si.Request(inputs))] = before
            began = time.perf_counter()
            try:
                factor = round(float((await stack(inputs))[0]))
            except si.StreamInferError as error:
                self._lost.append(error)
                continue
            self._latencies.append(time.perf_counter() - began)
            self._wrong += not before <= factor <= backend.fingerprint_changes() + 1


def main() -> int:
    swaps = int(sys.argv[1]) if len(sys.argv) > 1 else SWAPS
    print(f"{CLIENTS} clients in a closed loop, 2 sessions, batches of up to 16, a reload every {PAUSE_S} s")
    print(
        f"  {'swaps':>5} {'answered':>9} {'lost':>5} {'wrong':>6} {'wrong in cache':>13} {'answers/s':>10}"
        f" {'p50 ms':>7} {'p99 ms':>7} {'worst ms':>8} {'reload ms':>10}"
    )
    undisturbed, drill = Drill(swaps), Drill(swaps)
    failed = any(asyncio.run(undisturbed.run(swapping=False))[:3])
    lost, wrong, mixed, answered = asyncio.run(drill.run(swapping=True))
    note = f"{swaps} replacements"
    met = [
        figure.report(count, of=answered, note=note) for figure, count in ((LOST, lost), (WRONG, wrong), (MIXED, mixed))
    ]
    RATE.report(drill.rate, note=f"{undisturbed.rate:,.0f} without replacements")
    return 0 if all(met) and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
