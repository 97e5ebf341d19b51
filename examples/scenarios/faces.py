"""A face detector for the scenarios in this folder: BlazeFace on pictures of 128×128."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import streaminfer as si

__all__ = ["confidence", "make_app", "make_face_detector", "normalize"]

MODEL = Path(__file__).parents[1] / "assets" / "blaze_front.onnx"


def make_face_detector() -> si.Stack:
    """Return the detector; batches would not make it faster on a CPU."""
    example = {"input": np.zeros((128, 128, 3), np.float32)}
    return si.Stack(si.Telemetry("faces"), si.OnnxBackend(MODEL, threads=1, example=example))


def make_app() -> si.serving.ServingApp:
    """Return the detector behind the Open Inference Protocol, for ``uvicorn --factory scenarios.faces:make_app``."""
    return si.serving.asgi_app({"faces": make_face_detector()})


def normalize(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return a picture with levels from -1 to 1."""
    return picture.astype(np.float32) / np.float32(127.5) - np.float32(1)


def confidence(outputs: dict[str, NDArray[np.float32]], _position_s: float) -> float:
    """Return the detector's confidence in a face, from 0 to 1; every frame of the clip shows a face."""
    return float(1 / (1 + np.exp(-outputs["scores"].max())))
