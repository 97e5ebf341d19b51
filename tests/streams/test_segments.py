"""Segments of speech: equal for a stream and a recording, and equal to those of silero's own function."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams import Segment, Segments

FRAME_S = 0.032


def silero(probabilities, *, threshold, exit_threshold, min_speech_s, min_silence_s, pad_s):
    """Return the segments of ``get_speech_timestamps`` of silero-vad 6, without its limit on the length of speech."""
    speeches, triggered, start, temp_end = [], False, 0, None
    for at, probability in enumerate(probabilities):
        if probability >= threshold and temp_end is not None:
            temp_end = None
        if probability >= threshold and not triggered:
            triggered, start = True, at
            continue
        if probability < exit_threshold and triggered:
            if temp_end is None:
                temp_end = at
            if (at - temp_end) * FRAME_S < min_silence_s - 1e-9:
                continue
            if (temp_end - start) * FRAME_S >= min_speech_s - 1e-9:
                speeches.append((start, temp_end))
            triggered, temp_end = False, None
    count = len(probabilities)
    if triggered and (count - start) * FRAME_S >= min_speech_s - 1e-9:
        speeches.append((start, count))
    return [(max(start * FRAME_S - pad_s, 0.0), min(end * FRAME_S + pad_s, count * FRAME_S)) for start, end in speeches]


probabilities = st.lists(st.sampled_from([0.0, 0.2, 0.34, 0.36, 0.45, 0.5, 0.9, 1.0]), max_size=120)
settings = {"threshold": 0.5, "exit_threshold": 0.35, "min_speech_s": 0.25, "min_silence_s": 0.1, "pad_s": 0.03}


@given(probabilities, st.sampled_from([0.0, 0.064, 0.25]), st.sampled_from([0.0, 0.1, 0.2]))
def test_segments_equal_those_of_silero(frames, min_speech_s, min_silence_s):
    options = settings | {
        "min_speech_s": min_speech_s,
        "min_silence_s": min_silence_s,
        "pad_s": min(0.03, min_silence_s / 2),
    }
    found = Segments(frame_s=FRAME_S, **options).find(frames)
    expected = silero(frames, **options)
    if frames and len(found) < len(expected):  # silero counts silence at the very end of the recording as speech
        expected = expected[: len(found)]

    assert [segment.start_s for segment in found] == pytest.approx([start for start, _ in expected])
    for segment, (_, end_s) in list(zip(found, expected, strict=True))[:-1]:
        assert segment.end_s == pytest.approx(end_s)


@given(probabilities, st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 1))
def test_a_stream_and_a_recording_have_equal_segments(frames, min_speech_s, min_silence_s, pad):
    """A stream and a recording have the same segments.

    Each start that a stream reports is the start of the segment that ends next, and segments do not overlap.
    """
    segments = Segments(
        frame_s=FRAME_S, min_speech_s=min_speech_s, min_silence_s=min_silence_s, pad_s=pad * min_silence_s
    )
    events = [event for frame in frames if (event := segments.push(frame)) is not None]
    last = segments.finish()
    events += [] if last is None else [last]

    ended = events[1::2]
    assert segments.find(frames) == ended
    assert [event.start_s for event in events[::2]] == [event.start_s for event in ended]
    assert all(event.end_s is None for event in events[::2])
    edges = [edge for segment in ended for edge in (segment.start_s, segment.end_s)]
    assert edges == sorted(edges)
    assert all(0 <= edge <= len(frames) * FRAME_S + 1e-9 for edge in edges)


def test_segment_is_reported_at_start_and_end():
    """A segment is reported when its speech is long enough, and again when the silence after it is long enough."""
    segments = Segments(frame_s=0.1, min_speech_s=0.3, min_silence_s=0.2, pad_s=0.1)
    told = [segments.push(frame) for frame in [0, 1, 1, 0.4, 1, 0, 0, 0, 0]]

    assert told[:3] == [None, None, None]
    assert told[3] == Segment(0.0)
    assert told[4:7] == [None, None, None]
    assert told[7] == Segment(0.0, pytest.approx(0.6))
    assert told[8] is None
    assert segments.finish() is None


def test_nan_of_a_dropped_frame_changes_no_segment():
    """NaN, for a frame without a result, neither begins nor ends a segment, and time continues."""
    segments = Segments(frame_s=0.1, min_speech_s=0.1, min_silence_s=0.2, pad_s=0.0)

    found = segments.find([0, 1, math.nan, math.nan, 0, 0, 0, math.nan, math.nan, 1, 0, 0, 0])

    assert [(round(one.start_s, 6), round(one.end_s, 6)) for one in found] == [(0.1, 0.4), (0.9, 1.0)]


def test_short_noise_is_no_segment():
    assert Segments(frame_s=0.1, min_speech_s=0.3).find([0, 1, 1, 0, 0, 0, 0]) == []


def test_threshold_below_least_exit_is_its_own_exit():
    """A threshold below the lowest default exit threshold is its own exit threshold."""
    segments = Segments(frame_s=0.1, threshold=0.005, min_speech_s=0.1, pad_s=0.0)
    assert segments.find([0.004, 0.006, 0.006, 0.004, 0.004]) == [Segment(0.1, pytest.approx(0.3))]


def test_an_end_of_the_stream_ends_the_segment():
    segments = Segments(frame_s=0.1, min_speech_s=0.1, min_silence_s=0.5, pad_s=0.05)
    assert segments.find([1, 1, 1]) == [Segment(0.0, pytest.approx(0.3))]
    assert segments.find([1, 1, 1, 0, 0]) == [Segment(0.0, pytest.approx(0.35))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_s": 0}, "frame_s"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": 0.5, "exit_threshold": 0.6}, "exit_threshold"),
        ({"pad_s": 0.2, "min_silence_s": 0.1}, "pad_s: expected at most min_silence_s, 0.1, got 0.2"),
        ({"min_speech_s": -1}, "min_speech_s"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Segments(**{"frame_s": 0.032} | options)


def test_frames_of_any_length_are_counted():
    """If the shortest speech has more frames than a float can count, there is no segment and no error."""
    assert Segments(frame_s=1e-300, min_speech_s=1e300).find([1.0] * 9) == []
