"""Adapters of Pipecat and LiveKit, run by the frameworks in environments of their own."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from servers.environments import ENVIRONMENTS

ROOT = Path(__file__).parents[2]


def run(framework, script, *arguments):
    folders = [ROOT, ROOT / "examples"]
    done = subprocess.run(
        [ENVIRONMENTS[framework].make().python, "-W", "error::RuntimeWarning", script, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("framework", ["pipecat", "livekit"])
def test_segments_equal_those_of_framework_detector(framework):
    """Conversations have the segments that the framework's own detector finds.

    Segments are equal, whatever the size or rate of the frames, in every conversation of a shared batch.
    """
    found = json.loads(run(framework, Path(__file__).with_name("voice_frameworks.py"), framework))
    assert len(found) == 6
    for recording, (own, *ours) in found.items():
        assert all(one == own for one in ours), recording
        assert (len(own) > 1) == (not recording.startswith("silence")), recording
    assert any(len(own) > 2 for own, *_ in found.values())


def test_failed_window_does_not_affect_later_windows():
    """A failed window loses the sound that came with it, and each later window has its own confidence.

    The error for another sample rate names the rate.
    """
    found = json.loads(run("pipecat", Path(__file__).with_name("voice_frameworks.py"), "pipecat-fails"))
    whole, with_failure, error = found
    assert error.startswith("sample_rate: expected 16000, got 8000")
    assert with_failure.pop(2) == "failed"
    assert with_failure == whole
    assert len(set(whole)) == 4


@pytest.mark.parametrize(
    ("framework", "lines"),
    [
        ("pipecat", ["0.00 s: quiet", "0.56 s: starting", "0.72 s: speaking", "6.86 s: stopping", "7.02 s: quiet"]),
        ("livekit", ["0.42 s: start of speech", "7.14 s: end of speech"]),
    ],
    ids=["pipecat", "livekit"],
)
def test_example_prints_speech_of_its_conversations(framework, lines, examples):
    """The example of each framework prints the speech of its conversations."""
    printed = run(framework, examples / f"{framework}_vad.py").splitlines()
    assert printed == [*lines, "the same in all conversations: True"]
