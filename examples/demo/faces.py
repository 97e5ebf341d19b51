"""Faces from the raw outputs of BlazeFace: anchors, decoding, non-maximum suppression.

For each of many anchors (points on one or two grids over the image), the detector returns the probability of a face,
and the position of its box relative to the anchor. Neighboring anchors detect the same face. As in MediaPipe, boxes
that overlap the best one are not discarded but averaged with it, weighted by their scores, so that the box stays steady
from frame to frame.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FULL", "Detector", "Face", "find_faces", "normalize"]

Floats = NDArray[np.float32]


class Detector(NamedTuple):
    """One of the two BlazeFace models.

    Attributes:
        file: file name of the model.
        size: height and width of its square input.
        grids: cells along a side of each grid, and anchors in a cell.
    """

    file: str
    size: int
    grids: tuple[tuple[int, int], ...]

    def anchors(self) -> Floats:
        """Return the anchors in the order of the model's outputs: (anchors, 2), x and y in input pixels."""
        points = []
        for cells, repeats in self.grids:
            centers = (np.arange(cells, dtype=np.float32) + 0.5) * (self.size / cells)
            grid = np.stack(np.meshgrid(centers, centers), axis=-1).reshape(-1, 2)  # row by row, x changing first
            points.append(np.repeat(grid, repeats, axis=0))
        return np.concatenate(points)


FULL = Detector("blaze_full.onnx", 192, ((48, 1),))


def normalize(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the input of the detector: 0…255 becomes -1…1."""
    values = pixels.astype(np.float32)
    values *= np.float32(1 / 127.5)
    values -= np.float32(1)
    return values


class Face(NamedTuple):
    """A face in a frame: corners in input pixels, and the score that it is one, from 0 to 1."""

    left: float
    top: float
    right: float
    bottom: float
    score: float


def find_faces(
    boxes: Floats, logits: Floats, anchors: Floats, *, threshold: float = 0.5, overlap: float = 0.3
) -> list[Face]:
    """Return the faces in one frame, the most certain first.

    Args:
        boxes: (anchors, 16): offset of the center, width and height in pixels, and six key points, not used here.
        logits: (anchors, 1): the score before the sigmoid.
        anchors: (anchors, 2), from :meth:`Detector.anchors`.
        threshold: the least score.
        overlap: boxes with at least this intersection over union show the same face.
    """
    # comparing logits saves the sigmoid of the anchors without a face, which are nearly all of them
    seen = np.flatnonzero(logits[:, 0] >= np.log(threshold / (1 - threshold)))
    scores = 1 / (1 + np.exp(-logits[seen, 0]))
    centers = anchors[seen] + boxes[seen, :2]
    halves = boxes[seen, 2:4] / 2
    corners = np.concatenate([centers - halves, centers + halves], axis=1)
    faces = []
    while len(scores):
        same = _overlaps(corners[scores.argmax()], corners) >= overlap
        same[scores.argmax()] = True  # a degenerate box overlaps nothing, not even itself
        left, top, right, bottom = np.average(corners[same], axis=0, weights=scores[same]).tolist()
        faces.append(Face(left, top, right, bottom, float(scores.max())))
        corners, scores = corners[~same], scores[~same]
    return faces


def _overlaps(one: Floats, others: Floats) -> Floats:
    """Return the intersection over union of one box with each of the others."""
    shared = np.clip(np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2]), 0, None).prod(axis=1)
    sides = np.clip(others[:, 2:] - others[:, :2], 0, None)
    union = np.clip(one[2:] - one[:2], 0, None).prod() + sides.prod(axis=1) - shared
    result: Floats = shared / np.maximum(union, np.float32(1e-9))
    return result
