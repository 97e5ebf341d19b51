"""WebRTC between two network namespaces, on a link that loses 5 % of the packets and delays them unevenly."""

import itertools

import pytest
from servers.webrtc_peers import run_peers


@pytest.mark.needs("network namespaces")
def test_arrived_frames_are_delivered_or_counted():
    """Each frame that arrives is delivered, or counted as dropped.

    Frames are in order and none is from the future; most frames arrive, and the connection leaves no task.
    """
    result = run_peers("video", 2.0, loss=5.0, delay_ms=20.0, jitter_ms=50.0)
    frames = result["frames"]
    assert result["arrived"] == result["delivered"] + result["dropped"]
    assert result["arrived"] > 35  # of 50
    assert len(frames) == result["delivered"] > 20
    assert all(before[0] <= after[0] for before, after in itertools.pairwise(frames))
    assert all(captured_ns <= delivered_ns for _, captured_ns, delivered_ns in frames)
    assert result["tasks"] == 0
