"""Media for the tests, and a check that each test leaves no descriptor or thread."""

import gc
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


def descriptors():
    """Return the number of open files, including the folder that the listing opens."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before, files = set(threading.enumerate()), descriptors()
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before
    assert descriptors() <= files


@pytest.fixture(scope="session")
def assets():
    return ROOT / "examples" / "assets"


def write_video(path, values, *, size=(64, 48), rate=25, codec="mpeg4", pts=None, container=None):
    """Write a video of gray pictures, one per value; ``pts`` is in frames."""
    with av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p" if codec != "mjpeg" else "yuvj420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for number, value in enumerate(values):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0]), value, np.uint8), "gray")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts = number if pts is None else pts[number]
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def write_audio(path, samples, *, rate=16_000, codec="pcm_s16le"):
    """Write sound of one or two channels, from int16 samples of shape ``(channels, n)``."""
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples.T).reshape(1, -1), "s16", layout)
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def video(tmp_path):
    """Return a function that writes a video: ``video(values, name="v.mp4", …)``."""
    return lambda values, name="video.mp4", **options: write_video(tmp_path / name, values, **options)


@pytest.fixture
def audio(tmp_path):
    """Return a function that writes a sound file: ``audio(samples, name="a.wav", …)``."""
    return lambda samples, name="audio.wav", **options: write_audio(tmp_path / name, samples, **options)


@pytest.fixture(scope="session")
def make_video():
    """Return a function that writes a video to a path: ``make_video(path, values, …)``."""
    return write_video
