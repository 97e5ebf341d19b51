"""What was recognized, and whether everybody heard the same.

All microphones play one clip, so the detector must tell them all the same, whatever batches their chunks were in. The
reference is the clip run once by hand, chunk by chunk, before anything is measured.
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
    """What all microphones of a hold heard.

    Attributes:
        segments: start and end in seconds of speech in the clip, as heard by the microphone that heard most of it
            without a gap.
        heard_s: how much of the clip that is.
        microphones: how many there were.
        intact: how many of them lost no chunk.
        agreeing: how many of these gave the reference's decision on every chunk.
        largest_difference: the largest difference of a probability from the reference, where the stream was intact.
        after_loss: chunks answered in streams that had lost one since the clip began.
        after_loss_agreeing: how many of these got the reference's decision nevertheless.
        probabilities: the ones behind ``segments``.
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
    """What all cameras of a hold saw.

    Attributes:
        frames: different frames of the clip that were answered.
        with_face: how many of them show a face.
        mean_faces: faces in a frame that shows one, on average.
        mean_score: their score, on average.
    """

    frames: int
    with_face: int
    mean_faces: float
    mean_score: float


async def listen_once(detector: DetectorByHand, clip: Clip) -> NDArray[np.float32]:
    """Return the speech probability of each chunk of a clip, which is the only stream."""
    return np.array([await detector.detect("clip", chunk, NEVER_NS) for chunk in clip.chunks], np.float32)


def compare_speech(heard: Sequence[NDArray[np.float32]], reference: NDArray[np.float32]) -> Speech:
    """Holds what each microphone heard against the reference.

    Args:
        heard: probabilities in order by microphone, the clip over and over from its beginning; NaN: a lost chunk.
        reference: the right ones, for one time through the clip.
    """
    length = len(reference)
    intact = agreeing = after_loss = after_loss_agreeing = 0
    largest = 0.0
    longest = np.empty(0, np.float32)
    for stream in heard:
        rounds = -(-len(stream) // length)
        played = np.full((rounds, length), np.nan, np.float32)
        played.ravel()[: len(stream)] = stream
        # the end of the recording looks like a loss, but nothing is counted behind it
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
    """Sums up the faces that were found, by number of the frame."""
    scores = [face.score for found in faces.values() for face in found]
    with_face = sum(bool(found) for found in faces.values())
    return Pictures(
        frames=len(faces),
        with_face=with_face,
        mean_faces=len(scores) / with_face if with_face else 0.0,
        mean_score=float(np.mean(scores)) if scores else 0.0,
    )
