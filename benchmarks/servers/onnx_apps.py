"""Real ONNX models of one input as stacks, and the ASGI app that serves them: ``uvicorn --factory onnx_apps:http_app``.

The folder in the variable ``STREAMINFER_MODELS`` has the files.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs

import streaminfer as si

__all__ = ["FOLDER", "MAX_BATCH_SIZE", "MODELS", "OnnxModel", "http_app", "stacks"]

FOLDER = "STREAMINFER_MODELS"
MAX_BATCH_SIZE = 32


@attrs.frozen
class OnnxModel:
    """A model, the name and shape of a row of its input and of its first output, and where its batches run."""

    file: str
    input: str
    row: tuple[int, ...]
    output: str
    answer: tuple[int, ...]
    executor: Literal["thread", "inline"]


MODELS = {
    # a row takes 0.1 ms, as long as a hop to a thread
    "silero": OnnxModel("silero_vad_16k_op15.onnx", "input", (576,), "output", (1,), "inline"),
    "blaze_full": OnnxModel("blaze_full.onnx", "input", (192, 192, 3), "boxes", (2304, 16), "thread"),
}


def stacks(folder: Path, *, inline: bool) -> Mapping[str, si.Stack]:
    """Return a stack for each model, not started; without ``inline`` all batches run in threads.

    gRPC's own work for a request takes longer than silero's row, so there a thread keeps the loop free.
    """
    return {
        name: si.Stack(
            si.AdaptiveBatcher(max_batch_size=MAX_BATCH_SIZE),
            si.OnnxBackend(
                folder / model.file, outputs=[model.output], executor=model.executor if inline else "thread"
            ),
        )
        for name, model in MODELS.items()
    }


def http_app() -> Any:
    """Return the app of all models."""
    return si.serving.asgi_app(stacks(Path(os.environ[FOLDER]), inline=True))
