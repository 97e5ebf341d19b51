"""Speech as a microphone delivers it, in chunks of 32 ms, and where the speech is, from what a voice detector says."""

import wave
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
from numpy.typing import NDArray

__all__ = ["CHUNK", "CHUNK_NS", "CHUNK_S", "Clip", "load_clip", "speech_segments"]

RATE = 16_000
CHUNK = 512
"""Samples in a chunk."""
CHUNK_S = CHUNK / RATE
CHUNK_NS = CHUNK * 1_000_000_000 // RATE


@attrs.frozen(eq=False)
class Clip:
    """A recording, cut as a live microphone would send it.

    Attributes:
        name: of the file.
        samples: float32 in -1…1, the last chunk filled up with zeros.
        chunks: one float32[512] each, views of one array, so that sending one copies nothing.
    """

    name: str
    samples: NDArray[np.float32]
    chunks: Sequence[NDArray[np.float32]]

    @property
    def duration_s(self) -> float:
        """How long it plays."""
        return len(self.chunks) * CHUNK_S


def load_clip(path: Path) -> Clip:
    """Reads a WAV file, one channel of 16-bit samples at 16 kHz.

    Raises:
        ValueError: another format.
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


def speech_segments(
    probabilities: NDArray[np.float32],
    *,
    threshold: float = 0.5,
    hysteresis: float = 0.15,
    shortest_speech_s: float = 0.25,
    shortest_silence_s: float = 0.1,
) -> list[tuple[float, float]]:
    """Spans of speech, from the probability of each chunk; the same rules as silero's own tool.

    Args:
        probabilities: shape (chunks,).
        threshold: speech begins at a chunk of at least this probability.
        hysteresis: it may end where the probability falls below ``threshold - hysteresis``.
        shortest_speech_s: shorter segments are dropped.
        shortest_silence_s: a segment ends once it has been quiet for so long.

    Returns:
        Start and end of each segment, in seconds.
    """
    segments: list[tuple[float, float]] = []
    start_s: float | None = None
    quiet_since_s: float | None = None
    for number, probability in enumerate(probabilities):
        now_s = number * CHUNK_S
        if probability >= threshold:
            quiet_since_s = None
            if start_s is None:
                start_s = now_s
        elif start_s is not None and probability < threshold - hysteresis:
            if quiet_since_s is None:
                quiet_since_s = now_s
            if now_s + CHUNK_S - quiet_since_s >= shortest_silence_s:
                segments.append((start_s, quiet_since_s))
                start_s = quiet_since_s = None
    if start_s is not None:
        segments.append((start_s, quiet_since_s if quiet_since_s is not None else len(probabilities) * CHUNK_S))
    return [(start, end) for start, end in segments if end - start >= shortest_speech_s]
