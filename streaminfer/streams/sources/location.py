"""Location of a source (a device, a file or a URL), FFmpeg's options for it, and FFmpeg's errors."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import attrs

from streaminfer._internal.validation import check_count, expected

__all__ = ["Location", "ffmpeg_errors", "locate"]

DEVICES = ("alsa", "avfoundation", "dshow", "gdigrab", "lavfi", "pulse", "v4l2", "x11grab")
"""Formats of FFmpeg that read from devices of this machine, or make a picture or sound."""

_USER = re.compile(r"//(?:[^/]*@|(?!\[)[^/]*:(?!\d*(?:[/?#]|$)).*@)")
"""User and password; the password may have a ``/`` that is not percent-encoded, which a port cannot have."""
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
OPTIONS = {
    # UDP loses packets where TCP would wait; cameras behind a router only do TCP
    "rtsp": {"rtsp_transport": "tcp"},
    # a read that would block returns at once, so that closing never waits for a camera
    "v4l2": {"fflags": "nonblock"},
}


@attrs.frozen
class Location:
    """One place to read from.

    Attributes:
        url: URL, path or device that FFmpeg opens.
        format: the device or container; ``None``: FFmpeg detects it.
        live: whether the source continues without a reader.
        local: whether it is a file; reads of a file do not stall.
        options: options of FFmpeg.
        name: the URL without user, password and query, for messages.
    """

    url: str
    format: str | None
    live: bool
    local: bool
    options: dict[str, str]
    name: str


def locate(
    target: str | Path | int,
    *,
    format: str | None = None,  # noqa: A002 the word of FFmpeg
    live: bool | None = None,
    options: dict[str, str] | None = None,
    platform: str = sys.platform,
) -> Location:
    """Return how to open a camera by number, a device, a file or a URL.

    Raises:
        TypeError: ``target`` is none of these.
        ValueError: the number of a camera on Windows, where cameras have names.
    """
    if isinstance(target, int):
        number = check_count("url", target, at_least=0)
        if platform == "win32":
            raise ValueError(expected("url", "the name of a camera, as in 'video=Integrated Camera'", target))
        url, device = (str(number), "avfoundation") if platform == "darwin" else (f"/dev/video{number}", "v4l2")
    elif target and isinstance(target, str | Path):
        url, device = str(target), None
        if url.startswith("/dev/video"):
            device = "v4l2"
        elif platform == "win32" and url.startswith(("video=", "audio=")):
            device = "dshow"
    else:
        raise TypeError(expected("url", "a URL, the path of a file, or the number of a camera", target))
    input_format = format or device
    scheme = match[1].lower() if (match := SCHEME.match(url)) else "file"
    is_device = input_format in DEVICES
    is_endless = live if live is not None else is_device or scheme != "file"
    defaults = OPTIONS.get(input_format or scheme.removesuffix("s"), {})
    return Location(
        url=url,
        format=input_format,
        live=is_endless,
        local=scheme == "file" and not is_device,
        options=defaults | (options or {}),
        name=url if scheme == "file" else _USER.sub("//", url, count=1).partition("?")[0],
    )


@contextmanager
def ffmpeg_errors(av: ModuleType) -> Iterator[None]:
    """Raise an FFmpeg error that is neither `OSError` nor `ValueError`, such as an HTTP status, as `OSError`.

    Args:
        av: PyAV.
    """
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, (OSError, ValueError)):
            raise
        raise OSError(error.errno, error.strerror, error.filename) from error
