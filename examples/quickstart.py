"""The first example of the README, as a file: run it from the root of a checkout."""

import asyncio

import numpy as np

import streaminfer as si


async def main() -> None:
    """Two hundred callers at once, and the batches that they make."""
    path = "examples/assets/silero_vad_16k_op15.onnx"
    chunk = {"input": np.zeros(576, np.float32), "state": np.zeros((2, 128), np.float32)}  # 32 ms of a stream
    axes, rate = {"state": 1, "stateN": 1}, {"sr": np.array(16000)}
    model = si.OnnxBackend(path, batch_axes=axes, shared_inputs=rate, example=chunk)
    batcher = si.AdaptiveBatcher(max_batch_size=64, slo_s=0.050)
    async with si.Stack(si.Telemetry("speech"), batcher, model) as detect:
        await asyncio.gather(*(detect(chunk) for _ in range(200)), return_exceptions=True)
    print(detect.statistics()["Telemetry"], batcher.statistics().batch_sizes, sep="\n")


asyncio.run(main())
