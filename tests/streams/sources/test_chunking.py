"""Chunks of sound, from packets of any size."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams.sources.chunking import Chunker, GapDetector

MS = 1_000_000
RATE = 1_000  # a sample is a millisecond


@st.composite
def cuts(draw):
    chunk = draw(st.integers(1, 30))
    return chunk, draw(st.integers(1, chunk)), draw(st.integers(1, 2)), draw(st.lists(st.integers(0, 70), max_size=20))


@given(cuts())
def test_chunks_are_the_input_cut_at_every_hop(cut):
    """Sample i of chunk n is sample n * hop + i of the input, and the last chunk is padded with zeros."""
    chunk, hop, channels, packets = cut
    total = sum(packets)
    sound = np.arange(1, channels * total + 1).reshape(channels, total)
    chunker = Chunker(chunk, hop, RATE, np.empty((channels, 0), sound.dtype))
    frames, at = [], 0
    for size in packets:
        at += size
        frames += chunker.push(sound[:, at - size : at], (5_000 + at) * MS, at * MS)
    whole = len(frames)
    frames += chunker.flush()
    padded = np.pad(sound, ((0, 0), (0, chunk)))
    for number, frame in enumerate(frames):
        start = number * hop
        expected = padded[:, start : start + chunk]
        np.testing.assert_array_equal(frame.inputs, expected[0] if channels == 1 else expected)
        assert frame.position_s == start / RATE
        assert frame.captured_ns == (5_000 + min(total, start + chunk)) * MS
        assert not frame.discontinuity
        assert frame.inputs.base is None  # the reader may keep or change it
    covered = (len(frames) - 1) * hop + chunk if frames else 0
    assert covered >= total
    assert len(frames) - whole <= 1
    assert whole == max(0, (total - chunk) // hop + 1)


@given(cuts())
def test_instants_never_go_back(cut):
    """Capture instants never go back, also if a burst of packets arrives faster than its sound lasts."""
    chunk, hop, channels, packets = cut
    chunker = Chunker(chunk, hop, RATE, np.empty((channels, 0)))
    frames = []
    for number, size in enumerate(packets):
        frames += chunker.push(np.zeros((channels, size)), number * MS, number * MS)
    instants = [frame.captured_ns for frame in frames + chunker.flush()]
    assert instants == sorted(instants)


def test_a_long_chunk_is_put_together_once(monkeypatch):
    """Packets are not concatenated before their chunk is full, so samples are not copied again per later packet."""
    copied, concatenate = [], np.concatenate
    monkeypatch.setattr(np, "concatenate", lambda *given, **options: copied.append(concatenate(*given, **options)))
    chunker = Chunker(30_000, 30_000, RATE, np.empty((1, 0)))
    for number in range(1_499):
        chunker.push(np.zeros((1, 20)), number * MS, number * MS)
    assert copied == []


def test_flush_discontinuity():
    """The chunks after a flush have no sample from before it, and the first of them is a discontinuity."""
    chunker = Chunker(4, 2, RATE, np.empty((1, 0)))
    first = chunker.push(np.ones((1, 5)), 5 * MS, 5 * MS)
    rest = chunker.flush()
    then = chunker.push(np.full((1, 6), 2.0), 90 * MS, 90 * MS)
    assert [frame.inputs.tolist() for frame in first + rest] == [[1] * 4, [1, 1, 1, 0]]
    assert [frame.inputs.tolist() for frame in then] == [[2] * 4] * 2
    assert [frame.discontinuity for frame in first + rest + then] == [False, False, True, False]


def test_flush_does_not_repeat_sent_samples():
    """A flush does not repeat samples that are kept only as the overlap with the next chunk."""
    chunker = Chunker(4, 2, RATE, np.empty((1, 0)))
    assert len(chunker.push(np.ones((1, 4)), 0, 0)) == 1
    assert chunker.flush() == []
    assert Chunker(4, 2, RATE, np.empty((1, 0))).flush() == []


def test_gap_is_the_length_of_lost_packets():
    """Lost packets are a gap of about their length; rounded timestamps and overlaps are none."""
    gaps = GapDetector()
    starts_ms = [0, 21, 39, 60, 100, 120, 115, 140]
    assert [gaps.gap_ns(start * MS, 20 * MS) // MS for start in starts_ms] == [0, 0, 0, 0, 19, 0, 0, 0]


@given(st.floats(-900e-6, 900e-6), st.integers(5, 50))
def test_drift_is_no_gap(drift, packet_ms):
    """Clock drift below 1 part in 1,000 never adds up to a gap, and a lost packet is still a gap."""
    gaps = GapDetector()
    length_ns = packet_ms * MS
    for number in range(2_000):
        missing = number == 1_500
        if number > 1_500 or not missing:
            at = round((number + (number > 1_500)) * length_ns * (1 + drift))
            gap_ns = gaps.gap_ns(at, length_ns)
            assert (gap_ns > 0) == (number == 1_501), number
