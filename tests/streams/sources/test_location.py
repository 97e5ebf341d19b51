"""Location that a source opens, with its format and options."""

from pathlib import Path

import pytest

from streaminfer.streams.sources.location import locate


@pytest.mark.parametrize(
    ("target", "platform", "url", "form", "live", "local"),
    [
        (0, "linux", "/dev/video0", "v4l2", True, False),
        (1, "darwin", "1", "avfoundation", True, False),
        ("/dev/video2", "linux", "/dev/video2", "v4l2", True, False),
        ("video=Camera", "win32", "video=Camera", "dshow", True, False),
        ("clip.mp4", "linux", "clip.mp4", None, False, True),
        (Path("/a/clip.mp4"), "linux", "/a/clip.mp4", None, False, True),
        ("C:\\clips\\a.mp4", "win32", "C:\\clips\\a.mp4", None, False, True),
        ("file:///a/clip.mp4", "linux", "file:///a/clip.mp4", None, False, True),
        ("RTSP://cam/1", "linux", "RTSP://cam/1", None, True, False),
        ("https://cam/live.m3u8", "linux", "https://cam/live.m3u8", None, True, False),
    ],
)
def test_locate_says_whether_a_source_is_live(target, platform, url, form, live, local):
    place = locate(target, platform=platform)
    assert (place.url, place.format, place.live, place.local) == (url, form, live, local)


def test_live_and_format_arguments_override_the_guess():
    """``live`` and ``format`` override the guess for a recording behind a URL, a live pipe or a device of any name."""
    assert not locate("https://host/clip.mp4", live=False).live
    assert locate("pipe.ts", live=True).live
    microphone = locate("default", format="alsa")
    assert (microphone.format, microphone.live, microphone.local) == ("alsa", True, False)


def test_rtsp_uses_tcp_unless_told_otherwise():
    assert locate("rtsp://cam/1").options == {"rtsp_transport": "tcp"}
    assert locate("rtsps://cam/1").options == {"rtsp_transport": "tcp"}
    assert locate("rtsp://cam/1", options={"rtsp_transport": "udp"}).options == {"rtsp_transport": "udp"}
    assert locate(0, platform="linux").options == {"fflags": "nonblock"}


def test_name_has_no_secrets():
    """The name for messages has no user, password or token."""
    assert locate("rtsp://me:secret@cam:554/live?token=secret").name == "rtsp://cam:554/live"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://me:se/cret@cam:554/live", "rtsp://cam:554/live"),
        ("rtsp://me:se?cr/et@cam/live", "rtsp://cam/live"),
        ("rtsp://cam:554/live@1?user=me@home", "rtsp://cam:554/live@1"),
        ("rtsp://[::1]:554/live@1", "rtsp://[::1]:554/live@1"),
    ],
    ids=["slash", "query and slash", "a path with an at sign", "an address of IPv6"],
)
def test_name_has_no_password_that_is_not_encoded(url, name):
    assert locate(url).name == name


@pytest.mark.parametrize("target", [-1, None, 1.5, b"x", ""])
def test_other_targets_are_an_error(target):
    with pytest.raises((TypeError, ValueError), match="url: expected"):
        locate(target, platform="linux")


def test_windows_camera_number_is_an_error():
    with pytest.raises(ValueError, match="the name of a camera"):
        locate(0, platform="win32")
