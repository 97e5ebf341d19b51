"""The pipeline of the server examples: telemetry, a cache, and two face detectors behind a router.

Each detector has a batcher and a circuit breaker. When the better detector is slow, broken or overloaded, the router
sends requests to the smaller one and marks the responses as degraded.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
from demo.faces import FULL, Detector, find_faces, normalize
from numpy.typing import NDArray

import streaminfer as si

__all__ = ["SIZE", "make_faces", "read_picture"]

ASSETS = Path(__file__).resolve().parent / "assets"
SIZE = FULL.size
FRONT = Detector("blaze_front.onnx", 128, ((16, 2), (8, 6)))


def read_picture(body: bytes) -> NDArray[np.float32]:
    """Return the pixels of a picture as the pipeline takes it.

    Args:
        body: 192 rows of 192 pixels of three bytes: ``ffmpeg -i face.jpg -s 192x192 -pix_fmt rgb24 -f rawvideo -``.

    Raises:
        InvalidInput: the body has another size.
    """
    if len(body) != SIZE * SIZE * 3:
        raise si.InvalidInput(f"picture: expected {SIZE * SIZE * 3} bytes of RGB pixels, got {len(body)}")
    return normalize(np.frombuffer(body, np.uint8).reshape(SIZE, SIZE, 3))


def make_faces(*, slo_s: float = 0.25) -> si.Stack:
    """Return the pipeline: ``float32[192, 192, 3]`` → ``float32[faces, 5]``, corners in pixels and a score.

    Args:
        slo_s: seconds for which a response is useful.
    """
    slo = si.SLO("faces", threshold_s=slo_s)
    router = si.FallbackRouter(
        si.Route("full", _layers(FULL, slo_s), quality=1.0, cost=3.4, finish=_finish(FULL)),
        si.Route("front", _layers(FRONT, slo_s), quality=0.8, cost=1.0, prepare=_shrink, finish=_finish(FRONT)),
        slo=slo,
    )
    return si.Stack(si.Telemetry("faces", slo=slo), si.EdgeCache(max_bytes=16 << 20, ttl_s=60.0), router)


def _layers(detector: Detector, slo_s: float) -> list[Any]:
    # on a CPU, large batches of these convolutions cost more than they save
    batcher = si.AdaptiveBatcher(max_batch_size=4, slo_s=slo_s)
    breaker = si.CircuitBreaker(name=detector.file, slow_call_s=slo_s)
    return [batcher, breaker, si.OnnxBackend(ASSETS / detector.file, threads=1)]


def _shrink(picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shrink 192² pixels to 128²: each new pixel is the nearest old one."""
    nearest = (np.arange(FRONT.size) * (SIZE / FRONT.size)).astype(np.intp)
    return np.ascontiguousarray(picture[nearest[:, None], nearest])


def _finish(detector: Detector) -> Any:
    return functools.partial(_faces, anchors=detector.anchors(), scale=SIZE / detector.size)


def _faces(outputs: Any, *, anchors: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    found = np.array(find_faces(outputs["boxes"], outputs["scores"], anchors), np.float32).reshape(-1, 5)
    found[:, :4] *= scale
    return found
