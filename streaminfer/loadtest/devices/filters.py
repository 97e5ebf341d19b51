"""Compiles a profile to FFmpeg filters, each with a name, options and perhaps a source as its second input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import attrs

from streaminfer.loadtest.devices.profile import CameraProfile, DeviceProfile, MicrophoneProfile

__all__ = ["FilterStep", "compile_filters"]

SECOND_SEED = 1_000_003
"""Added to the seed for the room, so that room and noise differ."""


@attrs.frozen
class FilterStep:
    """One filter of a chain.

    Attributes:
        name: name of the filter in FFmpeg.
        options: options of the filter.
        source: filter that produces the second input.
    """

    name: str
    options: Mapping[str, str] = attrs.field(factory=dict)
    source: FilterStep | None = None


def compile_filters(profile: DeviceProfile, *, seed: int = 0) -> tuple[FilterStep, ...]:
    """Return the chain of filters that degrades a good recording to the quality of the device.

    Args:
        profile: profile of the device.
        seed: seed of noise and room.
    """
    return tuple(_camera(profile, seed) if isinstance(profile, CameraProfile) else _microphone(profile, seed))


def _camera(camera: CameraProfile, seed: int) -> Iterator[FilterStep]:
    yield FilterStep("fps", {"fps": f"{camera.rate:g}"})
    yield FilterStep("scale", {"w": str(camera.width), "h": str(camera.height), "flags": "bicubic"})
    if camera.exposure_ev:
        yield FilterStep("exposure", {"exposure": f"{camera.exposure_ev:g}"})
    yield FilterStep("format", {"pix_fmts": "yuv420p"})
    if camera.blur:
        yield FilterStep("gblur", {"sigma": f"{camera.blur:g}", "steps": "6"})
    if camera.noise:  # FFmpeg's strength is √3 times the standard deviation
        strength = str(max(1, round(camera.noise * math.sqrt(3))))
        yield FilterStep("noise", {"alls": strength, "allf": "t", "all_seed": str(seed)})


def _microphone(microphone: MicrophoneProfile, seed: int) -> Iterator[FilterStep]:
    rate = str(microphone.sample_rate)
    yield FilterStep("aresample", {"sample_rate": rate})
    yield FilterStep("aformat", {"sample_fmts": "fltp", "channel_layouts": "mono"})
    if microphone.reverberation_s:
        # the direct sound, then noise that falls by 60 dB (6.9 nepers) in the reverberation time
        decay = 6.9 / microphone.reverberation_s
        echo = f"if(eq(n,0),st(1,{seed + SECOND_SEED})*0+1,(random(1)-0.5)*0.1*exp(-{decay:.6g}*t))"
        room = FilterStep("aevalsrc", {"exprs": echo, "d": f"{microphone.reverberation_s:g}", "s": rate})
        yield FilterStep("afir", {"gtype": "none", "irnorm": "-1"}, room)
    if microphone.low_hz:
        yield FilterStep("highpass", {"f": f"{microphone.low_hz:g}"})
    if microphone.high_hz is not None and microphone.high_hz < microphone.sample_rate / 2:
        yield FilterStep("lowpass", {"f": f"{microphone.high_hz:g}"})
    if microphone.gain_db or microphone.gain_drift_db:
        period, drift = microphone.gain_drift_period_s, microphone.gain_drift_db
        gain = f"pow(10,({microphone.gain_db:g}+{drift:g}*sin(2*PI*t/{period:g}))/20)"
        yield FilterStep("volume", {"volume": gain, "eval": "frame"})
    if microphone.noise_dbfs is not None:
        # the noise is uniform between ± amplitude, so the amplitude is √3 times the RMS level
        amplitude = min(1.0, math.sqrt(3) * 10 ** (microphone.noise_dbfs / 20))
        options = {"sample_rate": rate, "amplitude": f"{amplitude:.9g}", "color": "white", "seed": str(seed)}
        noise = FilterStep("anoisesrc", options)
        yield FilterStep("amix", {"inputs": "2", "normalize": "0", "duration": "first"}, noise)
    # always present: a converter clips at its highest level
    threshold = f"{10 ** (microphone.clip_dbfs / 20):.9g}"
    yield FilterStep("asoftclip", {"type": "hard", "threshold": threshold})
    if microphone.bits is not None:
        # FFmpeg's "bits" exclude the sign, and "mix" is the share of the unchanged sound
        yield FilterStep("acrusher", {"bits": f"{microphone.bits - 1:g}", "mode": "lin", "mix": "0", "aa": "0.01"})
    yield FilterStep("aformat", {"sample_fmts": "s16", "channel_layouts": "mono"})
    yield FilterStep("asetnsamples", {"n": str(microphone.frame_samples), "p": "1"})
