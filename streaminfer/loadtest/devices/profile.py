"""Device profiles: cameras and microphones as data."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import attrs

from streaminfer._internal.validation import (
    check_choice,
    check_count,
    check_duration,
    check_instance,
    check_number,
    expected,
    field_check,
    is_name,
    make_from_table,
)
from streaminfer.loadtest.devices.delivery import Delivery

__all__ = ["AudioCodec", "CameraProfile", "DeviceProfile", "MicrophoneProfile", "VideoCodec", "profile_from_dict"]

VideoCodec = Literal["h264", "vp8", "vp9", "mjpeg", "raw"]
AudioCodec = Literal["opus", "aac", "pcm"]
OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
OPUS_FRAMES_S = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.06)
AAC_RATES = (7_350, 8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 64_000, 88_200, 96_000)
AAC_FRAME = 1_024
_RATES = {"opus": OPUS_RATES, "aac": AAC_RATES}


def _number(
    expectation: str, least: float, most: float, default: Any = attrs.NOTHING, *, optional: bool = False
) -> Any:
    expectation += f" from {least:g} to {most:g}"
    check = field_check(check_number, expectation, lambda it: least <= it <= most, optional=optional)
    return attrs.field(default=default, validator=check)


def _name() -> Any:
    return attrs.field(validator=field_check(check_instance, is_name, "a name"))


def _side(name: str, value: object) -> int:
    if (side := check_count(name, value, at_least=16, at_most=16_384)) % 2:
        raise ValueError(expected(name, "an even number of pixels", value))
    return side


_check_delivery = field_check(check_instance, Delivery, "a Delivery")


@attrs.frozen(kw_only=True)
class CameraProfile:
    """A camera.

    Attributes:
        name: name of the profile.
        width: width of the pictures in pixels, even.
        height: height of the pictures in pixels, even.
        rate: pictures per second, on the clock of the camera.
        noise: standard deviation of the noise of the sensor, in levels of 255; FFmpeg rounds it to steps of 0.58.
        blur: standard deviation of a Gaussian blur, in pixels.
        exposure_ev: stops above or below the right exposure.
        codec: codec of the stream; ``"raw"`` is lossless.
        bitrate: bits per second of the stream; ``"raw"`` ignores it.
        key_interval_s: seconds from a key frame to the next.
        delivery: timing of the camera.
    """

    name: str = _name()
    width: int = attrs.field(default=1280, validator=field_check(_side))
    height: int = attrs.field(default=720, validator=field_check(_side))
    rate: float = _number("pictures per second", 0.1, 1_000, 30.0)
    noise: float = _number("levels", 0, 57, 0.0)
    blur: float = _number("pixels", 0, 1_024, 0.0)
    exposure_ev: float = _number("stops", -3, 3, 0.0)
    codec: VideoCodec = attrs.field(default="h264", validator=field_check(check_choice, get_args(VideoCodec)))
    bitrate: int = attrs.field(default=2_000_000, validator=field_check(check_count, at_least=10_000))
    key_interval_s: float = attrs.field(default=2.0, validator=field_check(check_duration, positive=True))
    delivery: Delivery = attrs.field(factory=Delivery, validator=_check_delivery)

    @property
    def period_s(self) -> float:
        """Seconds from a picture to the next, on the clock of the camera."""
        return 1.0 / self.rate


@attrs.frozen(kw_only=True)
class MicrophoneProfile:
    """A microphone, alone or in a headset.

    Attributes:
        name: name of the profile.
        sample_rate: samples per second.
        codec: codec of the stream; ``"pcm"`` is lossless with 16 bits.
        bitrate: bits per second of the stream; ``"pcm"`` ignores it.
        frame_s: seconds of sound per packet; AAC ignores it and has 1,024 samples per packet.
        low_hz: lower end of the frequency band; 0: no lower end.
        high_hz: upper end of the frequency band; ``None``: no upper end.
        gain_db: amplification.
        gain_drift_db: amplitude of a slow drift of the amplification.
        gain_drift_period_s: period of this drift.
        noise_dbfs: level (RMS) of white noise in dBFS, at most 0; ``None``: no noise.
        reverberation_s: time in which the echo of the room falls by 60 dB; 0: no echo.
        clip_dbfs: level at which the microphone clips.
        bits: resolution of the converter, if it is so low that it is audible; ``None``: not limited.
        delivery: timing of the microphone.
    """

    name: str = _name()
    sample_rate: int = attrs.field(default=48_000, validator=field_check(check_count, at_least=4_000, at_most=384_000))
    codec: AudioCodec = attrs.field(default="opus", validator=field_check(check_choice, get_args(AudioCodec)))
    bitrate: int = attrs.field(default=32_000, validator=field_check(check_count, at_least=500))
    frame_s: float = _number("seconds", 0.0025, 1.0, 0.02)
    low_hz: float = _number("hertz", 0, 20_000, 0.0)
    high_hz: float | None = _number("hertz", 100, 100_000, None, optional=True)
    gain_db: float = _number("dB", -60, 60, 0.0)
    gain_drift_db: float = _number("dB", 0, 40, 0.0)
    gain_drift_period_s: float = _number("seconds", 0.1, 86_400, 10.0)
    noise_dbfs: float | None = _number("dB", -120, 0, None, optional=True)
    reverberation_s: float = _number("seconds", 0, 10, 0.0)
    clip_dbfs: float = _number("dB", -60, 0, 0.0)
    bits: float | None = _number("bits", 2, 24, None, optional=True)
    delivery: Delivery = attrs.field(factory=Delivery, validator=_check_delivery)

    def __attrs_post_init__(self) -> None:
        rates = _RATES.get(self.codec)
        if rates is not None and self.sample_rate not in rates:
            raise ValueError(expected("sample_rate", f"one of {rates} for {self.codec!r}", self.sample_rate))
        if self.codec == "opus" and self.frame_s not in OPUS_FRAMES_S:
            raise ValueError(expected("frame_s", f"one of {OPUS_FRAMES_S} for 'opus'", self.frame_s))
        if self.low_hz >= self.sample_rate / 2:  # FFmpeg's filter would pass everything
            raise ValueError(expected("low_hz", "below half of sample_rate", self.low_hz))
        if self.high_hz is not None and not self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ValueError(expected("high_hz", "above low_hz and at most half of sample_rate", self.high_hz))

    @property
    def frame_samples(self) -> int:
        """Samples per packet."""
        return AAC_FRAME if self.codec == "aac" else max(1, round(self.frame_s * self.sample_rate))

    @property
    def period_s(self) -> float:
        """Seconds from a packet to the next, on the clock of the device."""
        return self.frame_samples / self.sample_rate


DeviceProfile = CameraProfile | MicrophoneProfile
_KINDS: dict[str, Callable[..., DeviceProfile]] = {"camera": CameraProfile, "microphone": MicrophoneProfile}


def profile_from_dict(data: Mapping[str, Any]) -> DeviceProfile:
    """Return the profile that a TOML or JSON document describes.

    Args:
        data: ``kind`` is ``"camera"`` or ``"microphone"``; the other keys are the attributes of the profile. The table
            ``delivery`` has the attributes of the delivery.

    Raises:
        TypeError, ValueError: a key is unknown, or a value is out of range.
    """
    values = dict(data)
    kind = _KINDS[check_choice("kind", values.pop("kind", None), tuple(_KINDS))]
    values["delivery"] = make_from_table(Delivery, values.get("delivery", {}), "delivery")
    return make_from_table(kind, values, "", "the profile")
