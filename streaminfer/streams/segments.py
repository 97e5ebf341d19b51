"""Segments from frame probabilities: start and end of speech, or of anything else that a model sees frame by frame.

*Design.* One pass over the frames, the same for a stream and for a recording. A segment begins with the first frame at
or above ``threshold``. It ends at the first frame below ``exit_threshold`` if a frame at least ``min_silence_s`` later
is below it too, and no frame between them reaches ``threshold``. A segment shorter than ``min_speech_s`` is discarded.
Probabilities between the two thresholds neither begin nor end a segment: this is the hysteresis.

A start is reported when the segment is long enough, and an end when the silence is long enough. Both come a little late
but are never revised, so a stream and a recording have equal segments. The padding of an end lies in silence that has
already passed (``pad_s`` ≤ ``min_silence_s``). The padding of a start stops at the end of the previous segment.

*Reference.* silero-vad: ``get_speech_timestamps`` has these rules for recordings, and ``VADIterator`` for streams. In
silero-vad the two differ.
"""

import math
from collections.abc import Iterable
from copy import copy

import attrs

from streaminfer._internal.validation import check_duration, check_number, expected

__all__ = ["Segment", "Segments"]


@attrs.frozen(slots=True)
class Segment:
    """Part of a stream.

    Attributes:
        start_s: seconds from the start of the stream.
        end_s: seconds from the start of the stream; ``None``: the segment has not ended yet.
    """

    start_s: float
    end_s: float | None = None


class Segments:
    """Finds segments in the probabilities of one stream.

    ::

        segments = Segments(frame_s=0.032)
        async for result in session(microphone):
            segment = segments.push(result.outputs["output"].item())
            if segment is not None:
                print("speech", segment)

    Args:
        frame_s: seconds from one frame to the next.
        threshold: probability from which a frame is speech.
        exit_threshold: probability below which a frame is silence; ``None``: 0.15 below ``threshold``, but at least
            0.01 and at most ``threshold``.
        min_speech_s: shortest segment, in seconds; shorter ones are discarded.
        min_silence_s: seconds of silence that end a segment.
        pad_s: seconds added at each end of a segment, at most ``min_silence_s``.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
    """

    def __init__(
        self,
        *,
        frame_s: float,
        threshold: float = 0.5,
        exit_threshold: float | None = None,
        min_speech_s: float = 0.25,
        min_silence_s: float = 0.1,
        pad_s: float = 0.03,
    ) -> None:
        self._frame_s = check_duration("frame_s", frame_s, positive=True)
        self._enter = check_number("threshold", threshold, "a number above 0 and at most 1", lambda it: 0 < it <= 1)
        exit_at = min(max(self._enter - 0.15, 0.01), self._enter) if exit_threshold is None else exit_threshold
        expectation = "a number from 0 to threshold, or None"
        self._exit = check_number("exit_threshold", exit_at, expectation, lambda it: 0 <= it <= self._enter)
        self._min_speech = self._frames(check_duration("min_speech_s", min_speech_s))
        self._min_silence = self._frames(check_duration("min_silence_s", min_silence_s))
        if check_duration("pad_s", pad_s) > min_silence_s:
            raise ValueError(expected("pad_s", f"at most min_silence_s, {min_silence_s}", pad_s))
        self._pad_s = pad_s
        self._position = 0  # frames so far
        self._onset = -1  # first frame of the current segment, or of a candidate; -1: none
        self._silence = -1  # first frame of silence after it; -1: no silence yet
        self._start_s = -1.0  # start of the current segment, once reported; -1: not yet
        self._last_end_s = 0.0

    def push(self, probability: float) -> Segment | None:
        """Process the next frame.

        Args:
            probability: probability of the frame. NaN marks a dropped frame and counts as a probability between
                the thresholds.

        Returns:
            A segment without an end when one begins, the complete segment when it ends, else ``None``.
        """
        position = self._position
        self._position += 1
        if probability >= self._enter:
            self._silence = -1
            if self._onset < 0:
                self._onset = position
        elif self._onset < 0:
            return None
        elif probability < self._exit:
            if self._silence < 0:
                self._silence = position
            if position - self._silence >= self._min_silence:
                return self._end()
        if self._start_s < 0 and self._silence < 0 and self._position - self._onset >= self._min_speech:
            self._start_s = max(round(self._onset * self._frame_s - self._pad_s, 9), self._last_end_s)
            return Segment(self._start_s)
        return None

    def finish(self) -> Segment | None:
        """End the stream and start over; return the segment that had not ended yet, or ``None``."""
        segment = self._end()
        self._position, self._onset, self._silence, self._last_end_s = 0, -1, -1, 0.0
        return segment

    def find(self, probabilities: Iterable[float]) -> list[Segment]:
        """Return the complete segments of a whole recording, as :meth:`push` and :meth:`finish` would return them."""
        detector = copy(self)
        detector.finish()  # clears the state of the stream in the copy
        segments = [segment for one in probabilities if (segment := detector.push(one)) and segment.end_s is not None]
        last = detector.finish()
        return segments if last is None else [*segments, last]

    def _end(self) -> Segment | None:
        """End the current segment, and return it if it was reported."""
        length_s = self._position * self._frame_s
        end_s = length_s if self._silence < 0 else min(self._silence * self._frame_s + self._pad_s, length_s)
        start_s, self._start_s = self._start_s, -1.0
        self._onset = self._silence = -1
        if start_s < 0:
            return None
        self._last_end_s = round(end_s, 9)
        return Segment(start_s, self._last_end_s)

    def _frames(self, seconds: float) -> int:
        """Return the smallest number of frames that last this long; a rounding error adds no frame."""
        return math.ceil(min(seconds / self._frame_s, 1e18) - 1e-9)

    def __repr__(self) -> str:
        return f"<Segments, {self._position * self._frame_s:.3f} s>"
