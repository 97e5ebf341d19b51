"""Scenes small enough to encode many times."""

from pathlib import Path

import pytest

from streaminfer.loadtest.devices import CameraProfile, MicrophoneProfile
from streaminfer.loadtest.path import Scene

ASSETS = Path(__file__).parents[3] / "examples" / "assets"


@pytest.fixture(scope="session")
def camera_scene():
    """Return a function that makes the scene of a small camera: ``camera_scene(codec="h264", …)``."""
    scenes = {}

    def make(**options):
        key = tuple(sorted(options.items()))
        if key not in scenes:
            profile = CameraProfile(name="camera", width=160, height=120, rate=24.0, bitrate=200_000, **options)
            scenes[key] = Scene(ASSETS / "astronaut_pan.mp4", profile, seconds=1.0)
        return scenes[key]

    return make


@pytest.fixture(scope="session")
def microphone_scene():
    """Return a function that makes the scene of a microphone: ``microphone_scene(codec="opus", …)``."""

    def make(**options):
        return Scene(ASSETS / "librivox_0870.wav", MicrophoneProfile(name="microphone", **options), seconds=2.0)

    return make
