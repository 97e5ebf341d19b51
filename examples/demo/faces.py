"""From BlazeFace's raw answer to faces: anchors, decoding, non-maximum suppression.

The detector says, for each of many anchors (points on one or two grids over the image), how likely a face is there, and
where its box lies relative to the anchor. Neighboring anchors see the same face; as in MediaPipe, boxes that overlap
the best one are not thrown away but averaged into it, weighted by their scores, which keeps the box steady from frame
to frame.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["FULL", "Detector", "Face", "find_faces", "normalize"]

Floats = NDArray[np.float32]


class Detector(NamedTuple):
    """One of the two BlazeFace models.

    Attributes:
        file: the model's file.
        size: height and width of its square input.
        grids: cells along a side of each grid, and anchors in a cell.
    """

    file: str
    size: int
    grids: tuple[tuple[int, int], ...]

    def anchors(self) -> Floats:
        """The anchors in the order of the model's answers: (anchors, 2), x and y in input pixels."""
        points = []
        for cells, repeats in self.grids:
            centers = (np.arange(cells, dtype=np.float32) + 0.5) * (self.size / cells)
            grid = np.stack(np.meshgrid(centers, centers), axis=-1).reshape(-1, 2)  # row by row, x changing first
            points.append(np.repeat(grid, repeats, axis=0))
        return np.concatenate(points)


FULL = Detector("blaze_full.onnx", 192, ((48, 1),))


def normalize(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the detector reads: 0…255 becomes -1…1."""
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
    """The faces in one frame, the surest first.

    Args:
        boxes: (anchors, 16): offset of the center, width and height in pixels, and six key points, not used here.
        logits: (anchors, 1): the score before the sigmoid.
        anchors: (anchors, 2), from :meth:`Detector.anchors`.
        threshold: the least score.
        overlap: boxes with at least this intersection over union show the same face.
    """
    # comparing logits saves the sigmoid of every anchor that sees no face, which is nearly all of them
    seen = np.flatnonzero(logits[:, 0] >= np.log(threshold / (1 - threshold)))
    scores = 1 / (1 + np.exp(-logits[seen, 0]))
    centers = anchors[seen] + boxes[seen, :2]
    halves = boxes[seen, 2:4] / 2
    corners = np.concatenate([centers - halves, centers + halves], axis=1)
    faces = []
    while len(scores):
        same = _overlaps(corners[scores.argmax()], corners) >= overlap
        same[scores.argmax()] = True  # also a degenerate box, which overlaps nothing, not even itself
        left, top, right, bottom = np.average(corners[same], axis=0, weights=scores[same]).tolist()
        faces.append(Face(left, top, right, bottom, float(scores.max())))
        corners, scores = corners[~same], scores[~same]
    return faces


def _overlaps(one: Floats, others: Floats) -> Floats:
    """Intersection over union of one box with each of the others."""
    shared = np.clip(np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2]), 0, None).prod(axis=1)
    sides = np.clip(others[:, 2:] - others[:, :2], 0, None)
    union = np.clip(one[2:] - one[:2], 0, None).prod() + sides.prod(axis=1) - shared
    result: Floats = shared / np.maximum(union, np.float32(1e-9))
    return result
