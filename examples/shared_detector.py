"""Silero's voice detector, with the state of each stream, as one service for all streams of a process.

The convolutions of the model were folded by `fold_batches.py`, for batches. Single windows are faster on the original.
"""

from pathlib import Path

import numpy as np

import streaminfer as si

__all__ = ["RATE", "RECORDING", "WINDOW", "make_detector"]

ASSETS = Path(__file__).parent / "assets"
RECORDING = ASSETS / "librivox_0870.wav"
RATE = 16_000
WINDOW = 512
CONTEXT = 64
"""Samples of the previous window that the model reads again."""


def make_detector(*, max_batch_size: int = 32, max_streams: int = 1024) -> si.Stack:
    """Return a stack that takes ``float32[512]``, 32 ms of sound, and returns ``float32[1]``, a probability of speech.

    Args:
        max_batch_size: most windows in one run of the model.
        max_streams: most streams at the same time.
    """
    model = si.OnnxBackend(
        ASSETS / ("silero_vad_16k_folded.onnx" if max_batch_size > 1 else "silero_vad_16k_op15.onnx"),
        batch_axes={"state": 1, "stateN": 1},
        shared_inputs={"sr": np.array(RATE)},
        example={"input": np.zeros(CONTEXT + WINDOW, np.float32), "state": np.zeros((2, 128), np.float32)},
    )
    states = si.streams.StatefulBackend(
        model, state={"state": "stateN"}, context={"input": CONTEXT}, max_streams=max_streams
    )
    return si.Stack(si.AdaptiveBatcher(max_batch_size=max_batch_size, max_queue_size=max_streams), states)
