"""Video as a camera driver delivers it: frames in memory, scaled to the input of the detector.

The clip is decoded once, before anything is timed: the demo measures the serving of a model, and a camera driver
delivers pictures, not H.264.
"""

from pathlib import Path

import attrs
import av
import numpy as np
from numpy.typing import NDArray

__all__ = ["Frames", "load_frames"]


@attrs.frozen(eq=False)
class Frames:
    """A video clip, letterboxed.

    Attributes:
        name: name of the file.
        pixels: uint8[frames, size, size, 3], the picture in the middle, black bars around it.
        rate: frames per second.
    """

    name: str
    pixels: NDArray[np.uint8] = attrs.field(repr=False)
    rate: float

    def __len__(self) -> int:
        return len(self.pixels)


def load_frames(path: Path, size: int) -> Frames:
    """Decode a video file.

    Args:
        path: path of the file.
        size: height and width of the detector's input; the aspect ratio is kept.

    Raises:
        ValueError: the file has no video.
    """
    pictures = []
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path.name}: expected a video, got a file without one")
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 24)
        for frame in container.decode(stream):
            scale = size / max(frame.width, frame.height)
            width, height = round(frame.width * scale), round(frame.height * scale)
            picture = np.zeros((size, size, 3), np.uint8)
            left, top = (size - width) // 2, (size - height) // 2
            picture[top : top + height, left : left + width] = frame.reformat(
                width=width, height=height, format="rgb24", interpolation="AREA"
            ).to_ndarray()
            pictures.append(picture)
    return Frames(path.name, np.stack(pictures), rate)
