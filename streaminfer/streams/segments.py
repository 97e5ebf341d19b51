"""Segments from frame probabilities: start and end of speech, or of anything else that a model sees frame by frame.

*Design.* One pass, one frame at a time, the same for a stream and for a recording. A segment begins with the first
frame at or above ``threshold``. It ends with a frame below ``exit_threshold`` if another one is ``min_silence_s`` later
and none between them reaches ``threshold``. One shorter than ``min_speech_s`` is none. Probabilities between the
thresholds change nothing: that is the hysteresis.

A start is known when the segment is long enough, an end when the silence is, so both come a little late, but they are
never taken back: a stream and a recording have equal segments. The padding of an end lies in silence that has passed
already (``pad_s`` ≤ ``min_silence_s``), and that of a start stops at the end before it.

*Reference.* The rules are those of ``get_speech_timestamps`` of silero-vad, for recordings, and of its ``VADIterator``,
for streams; there the two differ.
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
        end_s: likewise; ``None``: it has begun, and goes on.
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
        exit_threshold: probability below which it is silence; ``None``: 0.15 below ``threshold``, and not under 0.01
            unless that is.
        min_speech_s: seconds of speech below which there is no segment.
        min_silence_s: seconds of silence that end a segment.
        pad_s: seconds by which segments are longer at either end, at most ``min_silence_s``.

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
        what = "a number from 0 to threshold, or None"
        self._exit = check_number("exit_threshold", exit_at, what, lambda it: 0 <= it <= self._enter)
        self._min_speech = self._frames(check_duration("min_speech_s", min_speech_s))
        self._min_silence = self._frames(check_duration("min_silence_s", min_silence_s))
        if check_duration("pad_s", pad_s) > min_silence_s:
            raise ValueError(expected("pad_s", f"at most min_silence_s, {min_silence_s}", pad_s))
        self._pad_s = pad_s
        self._position = 0  # frames so far
        self._onset = -1  # of the present segment, or of what may become one; -1: there is none
        self._silence = -1  # its first frame of silence; -1: it goes on
        self._start_s = -1.0  # of the present segment, once it is known to be one
        self._last_end_s = 0.0

    def push(self, probability: float) -> Segment | None:
        """Take the next frame.

        Args:
            probability: of the frame; NaN for one that was dropped: it leaves everything as it is, for its duration.

        Returns:
            A segment that has begun, without an end; or one that has ended; ``None``: neither.
        """
        at = self._position
        self._position += 1
        if probability >= self._enter:
            self._silence = -1
            if self._onset < 0:
                self._onset = at
        elif self._onset < 0:
            return None
        elif probability < self._exit:
            if self._silence < 0:
                self._silence = at
            if at - self._silence >= self._min_silence:
                return self._end(self._end_s())
        if self._start_s < 0 and self._silence < 0 and self._position - self._onset >= self._min_speech:
            self._start_s = max(round(self._onset * self._frame_s - self._pad_s, 9), self._last_end_s)
            return Segment(self._start_s)
        return None

    def finish(self) -> Segment | None:
        """Return the segment that the end of the stream ends; ``None``: there is none. It begins again after that."""
        segment = self._end(self._end_s()) if self._start_s >= 0 else None
        self._position, self._onset, self._silence, self._last_end_s = 0, -1, -1, 0.0
        return segment

    def find(self, probabilities: Iterable[float]) -> list[Segment]:
        """Return the segments of a whole recording, those that :meth:`push` and :meth:`finish` give for it."""
        whole = copy(self)
        whole.finish()  # what the stream has begun is not part of it
        found = [segment for one in probabilities if (segment := whole.push(one)) and segment.end_s is not None]
        last = whole.finish()
        return found if last is None else [*found, last]

    def _end_s(self) -> float:
        """Return the end of the present segment, to the nanosecond."""
        length_s = self._position * self._frame_s
        end_s = length_s if self._silence < 0 else min(self._silence * self._frame_s + self._pad_s, length_s)
        return round(end_s, 9)

    def _end(self, end_s: float) -> Segment | None:
        start_s, self._start_s = self._start_s, -1.0
        self._onset = self._silence = -1
        if start_s < 0:
            return None
        self._last_end_s = end_s
        return Segment(start_s, end_s)

    def _frames(self, seconds: float) -> int:
        """Return the fewest frames that last so long; a rounding error is no frame more."""
        return math.ceil(min(seconds / self._frame_s, 1e18) - 1e-9)

    def __repr__(self) -> str:
        return f"<Segments, {self._position * self._frame_s:.3f} s>"
