"""Encoder of a device and decoder of a receiver, with the CPU that each takes."""

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import attrs
import numpy as np

from streaminfer.loadtest.devices.codecs import new_decoder, new_encoder
from streaminfer.loadtest.devices.profile import CameraProfile
from streaminfer.loadtest.path.scene import Scene
from streaminfer.streams.frame import Frame
from streaminfer.streams.sources.conversion import AudioAssembler, PictureConverter
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat
from streaminfer.streams.sources.timestamps import Stamp

__all__ = ["Decoded", "Prepare", "Unit", "UnitDecoder", "UnitEncoder"]

Prepare = Callable[[np.ndarray[Any, Any]], Any]
FORCED_KEY, CHOSEN_BY_ENCODER = 1, 0


@attrs.frozen(slots=True)
class Unit:
    """What an encoder made of one frame.

    Attributes:
        data: packets of the codec, joined.
        pts: position, in ticks of the encoder.
        key: it can be decoded without those before it.
        cpu_s: of the encoder.
    """

    data: bytes
    pts: int
    key: bool
    cpu_s: float


@attrs.frozen(slots=True)
class Decoded:
    """What a receiver made of one unit.

    Attributes:
        frames: for the model.
        decode_cpu_s: of the decoder.
        prepare_cpu_s: of conversion and preparation for the model.
    """

    frames: list[Frame]
    decode_cpu_s: float
    prepare_cpu_s: float


class UnitEncoder:
    """Encoder of one device, for one thread at a time."""

    def __init__(self, av: ModuleType, scene: Scene) -> None:
        self.context = new_encoder(av, scene.profile)
        self._scene = scene
        self._camera = isinstance(scene.profile, CameraProfile)
        self._ticks = 1 if isinstance(scene.profile, CameraProfile) else scene.profile.frame_samples

    def encode(self, place: int, number: int, *, key: bool) -> Unit | None:
        """Return the unit of a frame; ``None``: the encoder holds it back, as some do with the first.

        Args:
            place: of the frame in the scene.
            number: of the frame in the stream.
            key: make a key frame.
        """
        started_s = time.thread_time()
        frame = self._scene.frame(place)
        frame.pts, frame.time_base = number * self._ticks, self.context.time_base
        if self._camera:
            frame.pict_type = FORCED_KEY if key else CHOSEN_BY_ENCODER
        packets = self.context.encode(frame)
        if not packets:
            return None
        data = b"".join(map(bytes, packets))
        return Unit(data, packets[0].pts, packets[0].is_keyframe, time.thread_time() - started_s)


class UnitDecoder:
    """Decoder of one receiver, for one thread at a time."""

    def __init__(
        self,
        av: ModuleType,
        scene: Scene,
        encoder: UnitEncoder,
        wanted: VideoFormat | AudioFormat,
        prepare: Prepare | None,
    ) -> None:
        self._av = av
        self._context = new_decoder(av, scene.profile, encoder.context)
        self._tick_s = encoder.context.time_base
        self._tick_ns = self._tick_s.numerator * 1_000_000_000, self._tick_s.denominator
        # one thread, so that its CPU is known
        self._picture = PictureConverter(av, wanted, threads=1) if isinstance(wanted, VideoFormat) else None
        self._sound = AudioAssembler(av, wanted) if isinstance(wanted, AudioFormat) else None
        self._prepare = prepare

    def decode(self, data: bytes, pts: int, captured_ns: int, *, discontinuity: bool) -> Decoded:
        """Return the frames that a unit completes."""
        started_s = time.thread_time()
        packet = self._av.Packet(data)
        packet.pts = packet.dts = pts
        packet.time_base = self._tick_s
        decoded = self._context.decode(packet)
        decoded_s = time.thread_time()
        numerator, denominator = self._tick_ns  # a `Fraction` takes thirty calls
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
        return Decoded(frames, decoded_s - started_s, time.thread_time() - decoded_s)
