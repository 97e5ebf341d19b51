"""`Scene`: pictures or sound that a device captures, rendered once and shared by every path that plays them."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from streaminfer._internal.loading.extras import require
from streaminfer.errors import InvalidInput
from streaminfer.loadtest.devices.codecs import CODECS
from streaminfer.loadtest.devices.library import device_profile
from streaminfer.loadtest.devices.profile import CameraProfile, DeviceProfile
from streaminfer.loadtest.devices.recording import render

__all__ = ["Scene"]


class Scene:
    """Frames that devices of one kind capture in a loop; the filters run once, before any load test.

    Args:
        source: a good recording.
        device: profile of the device, or its name.
        seed: seed of the noise.
        seconds: seconds of the recording to use; ``None``: all. A second of 640×480 at 30 pictures/s takes 14 MB.

    Attributes:
        profile: profile of the device.

    Raises:
        MissingExtra: PyAV is not installed.
        OSError: the recording cannot be opened or read.
        ValueError: the recording has no frame, or no pictures for a camera or no sound for a microphone.
    """

    def __init__(
        self, source: str | Path, device: str | Path | DeviceProfile, *, seed: int = 0, seconds: float | None = None
    ) -> None:
        self.profile = device_profile(device)
        self._av: ModuleType = require("av", extra="media", purpose="Scene")
        self._format = CODECS[self.profile.codec].frame_format
        self._frames = [self._to_array(frame) for frame in render(source, self.profile, seed=seed, seconds=seconds)]
        if not self._frames:
            raise InvalidInput(f"source: expected a recording with frames, got none in {str(source)!r}")

    def __len__(self) -> int:
        return len(self._frames)

    def frame(self, number: int) -> Any:
        """Return a PyAV frame by its number; after the last frame, the scene starts again."""
        samples = self._frames[number % len(self._frames)]
        if isinstance(self.profile, CameraProfile):
            return self._av.VideoFrame.from_numpy_buffer(samples, self._format)
        frame = self._av.AudioFrame.from_ndarray(samples, self._format, "mono")
        frame.sample_rate = self.profile.sample_rate
        return frame

    def _to_array(self, frame: Any) -> np.ndarray[Any, Any]:
        if isinstance(self.profile, CameraProfile):
            return np.ascontiguousarray(frame.reformat(format=self._format).to_ndarray())
        samples: np.ndarray[Any, Any] = frame.to_ndarray()  # int16
        return samples if self._format == "s16" else (samples / 32_768.0).astype(np.float32)
