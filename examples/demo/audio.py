"""Speech as a microphone delivers it, in chunks of 32 ms."""

import wave
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK", "CHUNK_NS", "CHUNK_S", "Clip", "load_clip"]

RATE = 16_000
CHUNK = 512
"""Samples in a chunk."""
CHUNK_S = CHUNK / RATE
CHUNK_NS = CHUNK * 1_000_000_000 // RATE


@attrs.frozen(eq=False)
class Clip:
    """A recording, cut as a live microphone would send it.

    Attributes:
        name: name of the file.
        samples: float32 in -1…1, the last chunk filled up with zeros.
        chunks: float32[512] each, views of one array, so that sending a chunk copies nothing.
    """

    name: str
    samples: NDArray[np.float32] = attrs.field(repr=False)
    chunks: Sequence[NDArray[np.float32]] = attrs.field(repr=False)

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""
        return len(self.chunks) * CHUNK_S


def load_clip(path: Path) -> Clip:
    """Read a WAV file, one channel of 16-bit samples at 16 kHz.

    Raises:
        ValueError: the file has another format.
    """
    with wave.open(str(path)) as file:
        found = (file.getnchannels(), file.getsampwidth(), file.getframerate())
        if found != (1, 2, RATE):
            raise ValueError(f"{path.name}: expected one channel of 16-bit samples at {RATE} Hz, got {found}")
        recorded = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    count = -(-len(recorded) // CHUNK)
    samples = np.zeros(count * CHUNK, np.float32)
    samples[: len(recorded)] = recorded / np.float32(32768)
    return Clip(path.name, samples, list(samples.reshape(-1, CHUNK)))
