"""Recognized speech and faces, and a check that all microphones got the same results.

All microphones play one clip, so the detector must return the same results for all, whatever batches their chunks were
in. The reference is one run of the clip by hand, chunk by chunk, before the measurements.
"""

from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from numpy.typing import NDArray

from demo.audio import CHUNK_S, Clip
from demo.by_hand import DetectorByHand
from demo.faces import Face
from streaminfer.streams import Segments

__all__ = ["Pictures", "Speech", "compare_speech", "count_faces", "listen_once"]

SPEECH = 0.5
NEVER_NS = 2**63 - 1


@attrs.frozen(eq=False, kw_only=True)
class Speech:
    """Speech results of all microphones of a hold.

    Attributes:
        segments: start and end in seconds of speech in the clip, from the microphone with the longest part without a
            gap.
        heard_s: seconds of the clip in that part.
        microphones: number of microphones.
        intact: number of microphones that lost no chunk.
        agreeing: number of intact microphones that agree with the reference on every chunk.
        largest_difference: largest difference of a probability from the reference in intact streams.
        after_loss: chunks with a result in streams that had lost one since the start of the clip.
        after_loss_agreeing: number of these chunks that agree with the reference nevertheless.
        probabilities: probabilities from which ``segments`` were made.
    """

    segments: list[tuple[float, float]]
    heard_s: float
    microphones: int
    intact: int
    agreeing: int
    largest_difference: float
    after_loss: int
    after_loss_agreeing: int
    probabilities: NDArray[np.float32]


@attrs.frozen
class Pictures:
    """Face results of all cameras of a hold.

    Attributes:
        frames: number of different frames of the clip with a response.
        with_face: number of these frames with a face.
        mean_faces: mean number of faces in a frame with a face.
        mean_score: mean score of these faces.
    """

    frames: int
    with_face: int
    mean_faces: float
    mean_score: float


async def listen_once(detector: DetectorByHand, clip: Clip) -> NDArray[np.float32]:
    """Return the speech probability of each chunk of a clip, with no other stream."""
    return np.array([await detector.detect("clip", chunk, NEVER_NS) for chunk in clip.chunks], np.float32)


def compare_speech(heard: Sequence[NDArray[np.float32]], reference: NDArray[np.float32]) -> Speech:
    """Compare the results of each microphone with the reference.

    Args:
        heard: probabilities of each microphone, in order, for repeated plays of the clip; NaN for a lost chunk.
        reference: the right probabilities, for one play of the clip.
    """
    length = len(reference)
    intact = agreeing = after_loss = after_loss_agreeing = 0
    largest = 0.0
    longest = np.empty(0, np.float32)
    for stream in heard:
        rounds = -(-len(stream) // length)
        played = np.full((rounds, length), np.nan, np.float32)
        played.ravel()[: len(stream)] = stream
        # the end of the recording looks like a loss, but no chunk after it is counted
        answered = ~np.isnan(played)
        untouched = np.logical_and.accumulate(answered, axis=1)
        same = (played >= SPEECH) == (reference >= SPEECH)
        differences = np.abs(played - reference)[untouched]
        largest = max(largest, float(differences.max(initial=0.0)))
        if len(stream) and not np.isnan(stream).any():
            intact += 1
            agreeing += bool(same[answered].all())
        after_loss += int((answered & ~untouched).sum())
        after_loss_agreeing += int((answered & ~untouched & same).sum())
        for number in range(rounds):
            if untouched[number].sum() > len(longest):
                longest = played[number][untouched[number]]
    found = Segments(frame_s=CHUNK_S).find(longest)
    return Speech(
        segments=[(one.start_s, one.end_s) for one in found if one.end_s is not None],
        heard_s=len(longest) * CHUNK_S,
        microphones=len(heard),
        intact=intact,
        agreeing=agreeing,
        largest_difference=largest,
        after_loss=after_loss,
        after_loss_agreeing=after_loss_agreeing,
        probabilities=longest,
    )


def count_faces(faces: Mapping[int, Sequence[Face]]) -> Pictures:
    """Summarize the faces that were found, given by number of the frame."""
    scores = [face.score for found in faces.values() for face in found]
    with_face = sum(bool(found) for found in faces.values())
    return Pictures(
        frames=len(faces),
        with_face=with_face,
        mean_faces=len(scores) / with_face if with_face else 0.0,
        mean_score=float(np.mean(scores)) if scores else 0.0,
    )
