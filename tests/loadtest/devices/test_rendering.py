"""Scenes through the filters of a device: repeatable by seed, at its rate and size, and within its levels."""

import attrs
import av
import numpy as np
import pytest

from streaminfer.loadtest.devices import CameraProfile, MicrophoneProfile, device_names, device_profile, render
from streaminfer.loadtest.devices.filters import compile_filters

CAMERA = CameraProfile(name="c", width=160, height=120, rate=12.0)
MICROPHONE = MicrophoneProfile(name="m", sample_rate=16_000, codec="pcm")


def pictures(clip, profile, **options):
    return [frame.reformat(format="gray").to_ndarray() for frame in render(clip, profile, seconds=0.5, **options)]


def samples(path, profile, **options):
    return np.concatenate([frame.to_ndarray()[0] for frame in render(path, profile, **options)]) / 32_768


def test_camera_has_its_own_rate_and_size(clip):
    frames = pictures(clip, CAMERA)

    assert len(frames) == 6
    assert frames[0].shape == (120, 160)


def test_noise_repeats_by_seed(clip):
    noisy = attrs.evolve(CAMERA, noise=5.0)

    assert np.array_equal(pictures(clip, noisy, seed=1), pictures(clip, noisy, seed=1))
    assert not np.array_equal(pictures(clip, noisy, seed=1), pictures(clip, noisy, seed=2))


def test_underexposed_picture_is_darker(clip):
    means = [np.mean(pictures(clip, attrs.evolve(CAMERA, exposure_ev=stops))) for stops in (-2.0, -1.0, 0.0, 1.0)]

    assert means == sorted(means)
    assert means[0] < 0.6 * means[2]


def test_sound_is_cut_into_packets_without_loss(bursts):
    frames = list(render(bursts, MICROPHONE))

    assert {frame.samples for frame in frames} == {320}
    assert len(frames) == 300


def test_converter_clips_at_its_level(bursts):
    sound = samples(bursts, attrs.evolve(MICROPHONE, clip_dbfs=-12.0))

    assert np.abs(sound).max() == pytest.approx(10 ** (-12 / 20), abs=2 / 32_768)


def test_gain_drifts_around_its_middle(bursts):
    drifting = attrs.evolve(MICROPHONE, gain_db=-6.0, gain_drift_db=3.0, gain_drift_period_s=4.0)
    sound = samples(bursts, drifting)

    first = 20 * np.log10(np.sqrt(np.mean(sound[14_400:16_000] ** 2))) + 12  # before 1 s: the highest gain
    third = 20 * np.log10(np.sqrt(np.mean(sound[46_400:48_000] ** 2))) + 12  # before 3 s: the lowest
    assert (first, third) == (pytest.approx(-3.0, abs=0.3), pytest.approx(-9.0, abs=0.3))


def test_noise_has_its_level(bursts):
    sound = samples(bursts, attrs.evolve(MICROPHONE, noise_dbfs=-40.0), seed=5)
    silence = sound[16_400:31_600]

    assert 20 * np.log10(np.sqrt(np.mean(silence**2))) == pytest.approx(-40.0, abs=0.3)


@pytest.mark.parametrize("band", [{"low_hz": 4_000.0}, {"high_hz": 150.0}], ids=["low end", "high end"])
def test_band_removes_a_tone_outside_it(bursts, band):
    """The tone of the bursts, which is outside the band, becomes quieter."""
    whole, cut = (samples(bursts, attrs.evolve(MICROPHONE, **limits))[1_600:14_400] for limits in ({}, band))

    assert np.sqrt(np.mean(cut**2)) < 0.3 * np.sqrt(np.mean(whole**2))


def test_reverberation_outlasts_the_sound(bursts):
    dry, wet = (samples(bursts, attrs.evolve(MICROPHONE, reverberation_s=seconds)) for seconds in (0.0, 0.5))

    assert np.abs(dry[16_400:17_600]).max() < 1e-3 < np.abs(wet[16_400:17_600]).max()


def test_few_bits_leave_few_levels(bursts):
    sound = samples(bursts, attrs.evolve(MICROPHONE, bits=4.0))

    assert len(np.unique(sound)) < 40  # 16 levels, and few between them: FFmpeg rounds the steps


@pytest.mark.parametrize("name", device_names())
def test_filters_of_the_library_exist(name):
    steps = compile_filters(device_profile(name))
    used = {step.name for step in steps} | {step.source.name for step in steps if step.source is not None}

    assert used <= set(av.filter.filters_available)


def test_camera_needs_pictures(speech):
    with pytest.raises(ValueError, match="expected a recording with pictures"):
        next(render(speech, CAMERA))
