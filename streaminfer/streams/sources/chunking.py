"""Chunks of sound of the size that a model wants, cut from packets of any size.

*Design.* Packets wait unchanged until a chunk is full, and then become one array. So a long chunk of short packets is
copied once. The next chunk starts ``hop`` samples later; samples that two chunks share are kept. The end of the newest
packet has an instant and a position. Every other sample is placed by counting back from it, so rounding errors do not
add up.

*Invariants.* Between two discontinuities, sample ``i`` of chunk ``n`` is sample ``n * hop + i`` of the input. No
sample is lost: `flush` pads the last ones with zeros. ``captured_ns`` never decreases.
"""

from typing import Any

import numpy as np

from streaminfer.streams.frame import Frame

__all__ = ["Chunker", "GapDetector"]

MAX_SILENCE_NS = 500_000_000  # lost packets; after a longer gap there is a discontinuity
MIN_GAP_NS = 5_000_000  # containers round timestamps to milliseconds


class GapDetector:
    """Finds sound that is missing between packets, by their positions."""

    def __init__(self) -> None:
        self._expected_ns: int | None = None

    def gap_ns(self, media_ns: int, duration_ns: int) -> int:
        """Return how much is missing before the packet at this position; 0: nothing.

        Packets that overlap count as consecutive.
        """
        expected_ns = media_ns if self._expected_ns is None else self._expected_ns
        gap_ns = media_ns - expected_ns
        if gap_ns < max(MIN_GAP_NS, duration_ns // 2):
            gap_ns = 0
        # clocks that differ by less than 1 part in 1,000 never add up to a gap
        self._expected_ns = max(media_ns, expected_ns - duration_ns // 1_000) + duration_ns
        return gap_ns


class Chunker:
    """Cuts the sound of one stream into chunks.

    Args:
        chunk: samples of a chunk.
        hop: samples from the start of a chunk to the start of the next one, at most ``chunk``.
        sample_rate: samples per second.
        empty: array of shape ``(channels, 0)`` of the type of the samples.
    """

    def __init__(self, chunk: int, hop: int, sample_rate: int, empty: np.ndarray[Any, Any]) -> None:
        self._chunk = chunk
        self._hop = hop
        self._rate = sample_rate
        self._parts = [empty]
        self._length = 0  # samples that wait
        self._overlap = 0  # samples at the front that an earlier chunk had, too
        self._end = (0, 0)  # instant and position behind the newest sample
        self._last_captured_ns: int | None = None
        self._discontinuity = False

    def push(self, samples: np.ndarray[Any, Any], captured_ns: int, end_media_ns: int) -> list[Frame]:
        """Return the chunks that these samples complete.

        Args:
            samples: array of shape ``(channels, n)``.
            captured_ns: instant of the last sample.
            end_media_ns: position behind the last sample.
        """
        self._parts.append(samples)
        self._length += samples.shape[1]
        self._end = captured_ns, end_media_ns
        frames: list[Frame] = []
        if self._length < self._chunk:
            return frames
        joined, start = np.concatenate(self._parts, axis=1), 0
        while start + self._chunk <= self._length:
            frames.append(self._make_chunk(joined[:, start : start + self._chunk], self._length - start))
            start += self._hop
            self._overlap = self._chunk - self._hop
        self._retain(joined[:, start:])
        return frames

    def flush(self) -> list[Frame]:
        """Return the chunk of the remaining samples, if any, padded with zeros; a discontinuity follows it."""
        frames = []
        joined, length = np.concatenate(self._parts, axis=1), self._length
        if length > self._overlap:
            padded = np.pad(joined, ((0, 0), (0, self._chunk - length)))
            frames.append(self._make_chunk(padded, length))
        self._retain(joined[:, :0].copy())
        self._overlap = 0
        self._discontinuity = self._last_captured_ns is not None
        return frames

    def _retain(self, samples: np.ndarray[Any, Any]) -> None:
        self._parts, self._length = [samples], samples.shape[1]

    def _make_chunk(self, samples: np.ndarray[Any, Any], before_end: int) -> Frame:
        captured_ns, media_ns = self._end
        captured_ns -= self._length_ns(max(0, before_end - self._chunk))
        if self._last_captured_ns is not None:
            captured_ns = max(captured_ns, self._last_captured_ns)
        self._last_captured_ns = captured_ns
        position_s = max(0, media_ns - self._length_ns(before_end)) / 1e9
        inputs = samples[0].copy() if len(samples) == 1 else samples.copy()
        frame = Frame(inputs, captured_ns, position_s, self._discontinuity)
        self._discontinuity = False
        return frame

    def _length_ns(self, samples: int) -> int:
        return samples * 1_000_000_000 // self._rate
