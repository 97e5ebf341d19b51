"""The first example of the README, as a file: ``python examples/quickstart.py``."""

import asyncio

import numpy as np

import streaminfer as si


async def main() -> None:
    """Send two hundred requests at once to a function that takes batches."""
    batcher = si.AdaptiveBatcher(max_batch_size=64, slo_s=0.250)
    model = si.CpuBackend(np.sqrt, example=1.0)  # any function of a whole batch
    async with si.Stack(si.Telemetry("roots"), batcher, model) as root:
        roots = await asyncio.gather(*(root(float(number)) for number in range(200)))
    print(roots[81], batcher.statistics().batches < 20)


asyncio.run(main())
