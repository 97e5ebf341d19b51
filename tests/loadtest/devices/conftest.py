"""Scenes for devices: the recordings of the examples, and sound of a known level."""

from pathlib import Path

import av
import numpy as np
import pytest

ASSETS = Path(__file__).parents[3] / "examples" / "assets"
RATE = 16_000


@pytest.fixture(scope="session")
def clip():
    return ASSETS / "astronaut_pan.mp4"


@pytest.fixture(scope="session")
def speech():
    return ASSETS / "librivox_0870.wav"


@pytest.fixture(scope="session")
def bursts(tmp_path_factory):
    """Return a file with a tone of -12 dBFS (RMS) in every other second, and silence between."""
    seconds = np.arange(6 * RATE) / RATE
    tone = np.sin(2 * np.pi * 440 * seconds) * np.sqrt(2) * 10 ** (-12 / 20) * (seconds % 2 < 1)
    path = tmp_path_factory.mktemp("sound") / "bursts.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray((tone * 32_767).astype(np.int16)[np.newaxis], "s16", "mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
