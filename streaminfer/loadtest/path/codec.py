"""Encoder of a device and decoder of a receiver, with the CPU time of each."""

import time
from collections.abc import Callable
from typing import Any

import attrs
import numpy as np

from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import expected
from streaminfer.loadtest.devices.codecs import new_decoder, new_encoder
from streaminfer.loadtest.devices.profile import CameraProfile
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.path.transfer import Transfer
from streaminfer.streams.frame import Frame
from streaminfer.streams.sources.conversion import AudioAssembler, PictureConverter
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat
from streaminfer.streams.sources.timestamps import Stamp

__all__ = ["Codecs", "Prepare", "Unit"]

Prepare = Callable[[np.ndarray[Any, Any]], Any]
FORCED_KEY, CHOSEN_BY_ENCODER = 1, 0


@attrs.frozen(slots=True)
class Unit:
    """One encoded frame.

    Attributes:
        data: packets of the codec, joined.
        pts: presentation timestamp, in ticks of the encoder.
        key: whether it can be decoded without the units before it.
    """

    data: bytes
    pts: int
    key: bool


class Codecs:
    """Encoder of one device and decoder of its receiver; not thread-safe.

    Args:
        scene: the scene that the device captures.
        wanted: input format of the model.
        prepare: makes an input of the model from an array.

    Attributes:
        cpu_s: CPU seconds of each stage so far.
        is_inter_coded: whether a unit may need the units before it; after a loss the receiver then needs a key frame.

    Raises:
        TypeError: the model takes pictures and the device sends sound, or the reverse.
    """

    def __init__(self, scene: Scene, wanted: VideoFormat | AudioFormat, prepare: Prepare | None) -> None:
        profile = scene.profile
        self._camera = isinstance(profile, CameraProfile)
        if not isinstance(wanted, VideoFormat if self._camera else AudioFormat):
            raise TypeError(expected("wanted", "a VideoFormat for a camera, an AudioFormat for a microphone", wanted))
        av = self._av = require("av", extra="media", purpose="the path of a device")
        self._scene, self._prepare = scene, prepare
        self._encoder = new_encoder(av, profile)
        self._decoder = new_decoder(av, profile, self._encoder)
        self._ticks = 1 if isinstance(profile, CameraProfile) else profile.frame_samples
        tick_s = self._encoder.time_base
        self._tick_ns = tick_s.numerator * 1_000_000_000, tick_s.denominator
        # a single thread, so that its CPU time is known
        self._picture = PictureConverter(av, wanted, threads=1) if isinstance(wanted, VideoFormat) else None
        self._sound = AudioAssembler(av, wanted) if isinstance(wanted, AudioFormat) else None
        self.cpu_s: dict[str, float] = dict.fromkeys(("encode", "decode", "prepare"), 0.0)
        self.is_inter_coded = self._camera and profile.codec != "mjpeg"

    def encode(self, transfer: Transfer, place: int, number: int, *, key: bool) -> Unit | None:
        """Encode a frame and return its unit; ``None`` if the encoder delays it, as some do with the first frame.

        Args:
            transfer: transfer of the frame; gets the CPU seconds.
            place: position of the frame in the scene.
            number: number of the frame in the stream.
            key: whether to make a key frame.
        """
        started_s = time.thread_time()
        frame = self._scene.frame(place)
        frame.pts, frame.time_base = number * self._ticks, self._encoder.time_base
        if self._camera:
            frame.pict_type = FORCED_KEY if key else CHOSEN_BY_ENCODER
        packets = self._encoder.encode(frame)
        if not packets:
            return None
        data = b"".join(map(bytes, packets))
        self._charge(transfer, "encode", time.thread_time() - started_s)
        return Unit(data, packets[0].pts, packets[0].is_keyframe)

    def decode(self, transfer: Transfer, data: bytes, pts: int, *, discontinuity: bool) -> None:
        """Decode a unit; the transfer gets the frames that the unit completes, and the CPU seconds."""
        started_s, captured_ns = time.thread_time(), transfer.captured_ns
        packet = self._av.Packet(data)
        packet.pts = packet.dts = pts
        packet.time_base = self._encoder.time_base
        decoded = self._decoder.decode(packet)
        decoded_s = time.thread_time()
        numerator, denominator = self._tick_ns  # integers, because a `Fraction` would take thirty calls
        media_ns = max(0, (pts * numerator + denominator // 2) // denominator)
        frames: list[Frame] = []
        for frame in decoded:
            if self._picture is not None:
                picture = self._picture(frame)
                inputs = picture if self._prepare is None else self._prepare(picture)
                frames.append(Frame(inputs, captured_ns, media_ns / 1e9, discontinuity))
            elif self._sound is not None:
                frames += self._sound.push(frame, Stamp(media_ns, captured_ns, discontinuity))
                media_ns += frame.samples * 1_000_000_000 // frame.sample_rate
        if self._prepare is not None and self._sound is not None:
            frames = [attrs.evolve(frame, inputs=self._prepare(frame.inputs)) for frame in frames]
        transfer.frames = frames
        self._charge(transfer, "decode", decoded_s - started_s)
        self._charge(transfer, "prepare", time.thread_time() - decoded_s)

    def _charge(self, transfer: Transfer, stage: str, seconds: float) -> None:
        transfer.cpu_s[stage] = seconds
        self.cpu_s[stage] += seconds
