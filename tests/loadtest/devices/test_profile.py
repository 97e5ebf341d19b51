"""Profiles are validated, and every profile of the library is valid."""

import json

import pytest

from streaminfer.loadtest.devices import CameraProfile, MicrophoneProfile, device_names, device_profile
from streaminfer.loadtest.devices.profile import profile_from_dict


@pytest.mark.parametrize("name", device_names())
def test_profile_of_the_library_has_its_name(name):
    assert device_profile(name).name == name


def test_library_reaches_from_phone_to_studio():
    assert {"phone", "webcam", "studio-camera", "phone-microphone", "headset", "studio-microphone"} <= set(
        device_names()
    )


@pytest.mark.parametrize(
    ("wrong", "argument"),
    [
        ({"kind": "phone"}, "kind"),
        ({"kind": "camera", "name": "x", "width": 641}, "width"),
        ({"kind": "camera", "name": "x", "codec": "h263"}, "codec"),
        ({"kind": "camera", "name": "x", "noise": 100.0}, "noise"),
        ({"kind": "camera", "name": "x", "colour": 1}, "colour"),
        ({"kind": "camera", "name": "x", "delivery": {"late": 1}}, "late"),
        ({"kind": "camera"}, "name"),
        ({"kind": "microphone", "name": "x", "sample_rate": 44_100}, "sample_rate"),
        ({"kind": "microphone", "name": "x", "codec": "aac", "sample_rate": 10_000}, "sample_rate"),
        ({"kind": "microphone", "name": "x", "frame_s": 0.03}, "frame_s"),
        ({"kind": "microphone", "name": "x", "high_hz": 90_000.0}, "high_hz"),
        ({"kind": "microphone", "name": "x", "sample_rate": 8_000, "low_hz": 4_000.0}, "low_hz"),
        ({"kind": "microphone", "name": "x", "clip_dbfs": 3.0}, "clip_dbfs"),
    ],
    ids=lambda it: it if isinstance(it, str) else "",
)
def test_wrong_value_is_named(wrong, argument):
    with pytest.raises(ValueError, match=argument):
        profile_from_dict(wrong)


def test_aac_sets_its_own_frame_length():
    profile = MicrophoneProfile(name="x", codec="aac", sample_rate=48_000)

    assert profile.frame_samples == 1_024
    assert profile.period_s == pytest.approx(1_024 / 48_000)


def test_profile_comes_from_a_file(tmp_path):
    toml, document = tmp_path / "mine.toml", tmp_path / "mine.json"
    toml.write_text('kind = "camera"\nname = "mine"\nrate = 12.0\n[delivery]\nloss = 0.5\n')
    document.write_text(json.dumps({"kind": "camera", "name": "mine", "rate": 12.0, "delivery": {"loss": 0.5}}))

    assert device_profile(toml) == device_profile(document)
    assert device_profile(toml).delivery.loss == 0.5


def test_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"\xff")

    with pytest.raises(ValueError, match=r"device: .*x.toml: 'utf-8' codec can't decode"):
        device_profile(tmp_path / "x.toml")


def test_unknown_name_lists_the_library():
    with pytest.raises(ValueError, match=r"one of 3?.*webcam"):
        device_profile("fax")


def test_device_profile_returns_a_profile_unchanged():
    profile = CameraProfile(name="x")

    assert device_profile(profile) is profile
