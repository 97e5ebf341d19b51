"""Real encoders and decoders with the settings of a live device: no look-ahead, no delayed frame, one thread."""

from collections.abc import Mapping
from fractions import Fraction
from types import ModuleType
from typing import Any, NamedTuple

from streaminfer.loadtest.devices.profile import CameraProfile, DeviceProfile, MicrophoneProfile

__all__ = ["CODECS", "CodecSettings", "new_decoder", "new_encoder", "set_up_encoder"]


class CodecSettings(NamedTuple):
    """Names and options of FFmpeg's encoder and decoder, and the format of the raw frames."""

    encoder: str
    decoder: str
    options: Mapping[str, str]
    frame_format: str = "yuv420p"


_REALTIME = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "error-resilient": "1"}
CODECS = {
    "h264": CodecSettings("libx264", "h264", {"preset": "ultrafast", "tune": "zerolatency"}),
    # a VP8 encoder with a cpu-used above 0 adapts to the load of the machine, so no run would repeat
    "vp8": CodecSettings("libvpx", "vp8", _REALTIME | {"cpu-used": "-12"}),
    "vp9": CodecSettings("libvpx-vp9", "vp9", _REALTIME),
    "mjpeg": CodecSettings("mjpeg", "mjpeg", {}, "yuvj420p"),
    "raw": CodecSettings("rawvideo", "rawvideo", {}),
    "opus": CodecSettings("libopus", "opus", {"application": "voip"}, "s16"),
    "aac": CodecSettings("aac", "aac", {}, "fltp"),
    "pcm": CodecSettings("pcm_s16le", "pcm_s16le", {}, "s16"),
}
"""Settings by the codec of a profile."""


def set_up_encoder(context: Any, profile: DeviceProfile) -> None:
    """Set the frame format and the codec settings of a device on an encoder."""
    settings = CODECS[profile.codec]
    context.options = dict(settings.options)
    if isinstance(profile, CameraProfile):
        context.width, context.height, context.pix_fmt = profile.width, profile.height, settings.frame_format
        rate = Fraction(profile.rate).limit_denominator(1_001)
        context.framerate, context.time_base = rate, 1 / rate
        context.gop_size = max(1, round(profile.key_interval_s * profile.rate))
        context.thread_count = 1
    else:
        context.sample_rate, context.layout = profile.sample_rate, "mono"
        context.format = settings.frame_format
        context.time_base = Fraction(1, profile.sample_rate)
        if profile.codec == "opus":
            context.options = context.options | {"frame_duration": f"{profile.frame_s * 1e3:g}"}
    if profile.codec not in {"pcm", "raw"}:
        context.bit_rate = profile.bitrate


def new_encoder(av: ModuleType, profile: DeviceProfile) -> Any:
    """Return an open encoder for the frames of a device."""
    context = av.CodecContext.create(CODECS[profile.codec].encoder, "w")
    set_up_encoder(context, profile)
    context.open()
    return context


def new_decoder(av: ModuleType, profile: DeviceProfile, encoder: Any) -> Any:
    """Return a decoder for the packets of an encoder."""
    context = av.CodecContext.create(CODECS[profile.codec].decoder, "r")
    if encoder.extradata:
        context.extradata = encoder.extradata
    if isinstance(profile, MicrophoneProfile):
        context.sample_rate, context.layout = profile.sample_rate, "mono"
    else:
        context.thread_count = 1
        if profile.codec == "raw":
            context.width, context.height, context.pix_fmt = encoder.width, encoder.height, encoder.pix_fmt
    return context
