"""A Triton model behind a batcher and a breaker: ``python examples/triton_stack.py localhost:8001 MODEL``.

The model needs one input of floats and one output. This command starts a server with such a model:
``python benchmarks/servers/triton_server.py mlp``.
"""

import argparse
import asyncio

import numpy as np

import streaminfer as si
from streaminfer.backends import TritonBackend


async def main(url: str, model: str, protocol: str) -> None:
    """Send a thousand requests; print their batches and the parts of their latency."""
    backend = TritonBackend(url, model, protocol="http" if protocol == "http" else "grpc", statistics_every_s=None)
    breaker = si.CircuitBreaker(slow_call_s=0.5)
    batcher = si.AdaptiveBatcher(max_batch_size=16, slo_s=2.0)
    async with si.Stack(si.Telemetry("triton"), batcher, breaker, backend) as service:
        await backend.read_statistics()
        shape = [size if isinstance(size, int) else 1 for size in backend.inputs[0].row_shape]
        rows = np.random.default_rng(0).random((1000, *shape)).astype(backend.inputs[0].dtype)
        answers = await asyncio.gather(*(service(row) for row in rows))
        await backend.read_statistics()
        found = batcher.statistics()
        print(f"{len(answers)} answers, each {answers[0].shape}; batches by size: {found.batch_sizes}")
        print(f"{found.pipelined} of {found.batches} batches were sent before the one before had ended")
        for part, seconds in backend.statistics().parts().items():
            print(f"{part:>16}: {seconds * 1e3:.3f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--protocol", choices=["grpc", "http"], default="grpc")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.url, arguments.model, arguments.protocol))
