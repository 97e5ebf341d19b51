"""Noise and blur of pictures in the units of a profile; FFmpeg's own measures use other units.

*Design.* Noise is the mean absolute response of a mask that suppresses edges, in the calmer blocks of a picture
(Immerkær). To measure blur, the picture is blurred again: a Gaussian of known width lowers the slope of a sharp edge
more than that of a soft one. The ratio of the slopes gives the width of the original blur (Zhuo and Sim).

*References.* J. Immerkær, "Fast noise variance estimation", CVIU 64(2), 1996; S. Zhuo, T. Sim, "Defocus map
estimation from a single image", Pattern Recognition 44(9), 2011.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "measure_blur", "measure_noise"]

BLOCK = 16
CALM = 0.25
"""Quantile of the blocks that gives the noise: most noisier blocks have texture."""
REBLUR = 1.5
STEEP = 0.01
"""Share of the pixels that count as edges, those with the steepest slopes."""
MIN_SLOPE = 1.0
"""Smallest slope of an edge in levels per pixel, above the effect of rounding."""
MAX_BLUR = 1_024.0

Gray = NDArray[Any]


def measure_noise(gray: Gray) -> float:
    """Return the standard deviation of the noise of a picture, in gray levels."""
    picture = gray.astype(np.float32)
    rows = picture[:-2] - 2 * picture[1:-1] + picture[2:]
    response = np.abs(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:])
    height, width = (side // BLOCK * BLOCK for side in response.shape)
    if not height or not width:
        return 0.0
    blocks = response[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean(axis=(1, 3))
    # clipping hides the noise of black and white areas
    level = (
        picture[1 : height + 1, 1 : width + 1].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean(axis=(1, 3))
    )
    visible = blocks[(level > 24) & (level < 232)]
    return float(np.quantile(visible if visible.size else blocks, CALM)) * math.sqrt(math.pi / 2) / 6


def measure_blur(gray: Gray) -> float:
    """Return the standard deviation of the blur of the sharpest edges, in pixels; 0 if the picture has no edges.

    Noise makes a picture look sharper than it is.
    """
    picture = gray.astype(np.float32)
    slopes, blurred_slopes = _slopes(picture), _slopes(_blur(picture, REBLUR))
    is_edge = slopes >= max(float(np.quantile(slopes, 1 - STEEP)), MIN_SLOPE)
    if not is_edge.any():
        return 0.0
    ratio = float(np.median(slopes[is_edge] / np.maximum(blurred_slopes[is_edge], 1e-6)))
    return min(MAX_BLUR, REBLUR / math.sqrt(ratio * ratio - 1)) if ratio > 1 else MAX_BLUR


def _blur(gray: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    radius = math.ceil(3 * sigma)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    padded = np.pad(gray, radius, mode="edge")
    height, width = gray.shape
    rows = sum(weight * padded[:, number : number + width] for number, weight in enumerate(weights))
    return np.asarray(sum(weight * rows[number : number + height] for number, weight in enumerate(weights)))


def _slopes(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    down, right = gray[2:, 1:-1] - gray[:-2, 1:-1], gray[1:-1, 2:] - gray[1:-1, :-2]
    slopes: NDArray[np.float32] = np.hypot(down, right) / 2
    return slopes
