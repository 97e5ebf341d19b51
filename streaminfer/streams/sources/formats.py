"""Formats that a model wants from a source: size, rate and type of pictures or sound."""

from typing import Literal, get_args

import attrs

from streaminfer._internal.validation import check_choice, check_count, check_number, expected, field_check

__all__ = ["AudioFormat", "Dtype", "PixelFormat", "VideoFormat"]

PixelFormat = Literal["rgb24", "bgr24", "rgba", "bgra", "gray", "yuv420p"]
Dtype = Literal["float32", "int16"]

_check_rate = field_check(
    check_number, "a number of frames per second, from 1e-6 to 1,000", lambda it: 1e-6 <= it <= 1_000.0, optional=True
)


def _check_size(name: str, value: object) -> None:
    expectation = "a tuple of width and height in pixels"
    if not (isinstance(value, tuple) and len(value) == 2):
        raise TypeError(expected(name, expectation, value))
    for side in value:
        check_count(name, side, at_most=65_535)


@attrs.frozen(kw_only=True)
class VideoFormat:
    """Pictures that a model wants.

    Attributes:
        rate: maximum number of frames per second; ``None``: all.
        size: width and height; ``None``: the size of each picture, which may change.
        pixel_format: one of `PixelFormat`, as FFmpeg names it.
    """

    rate: float | None = attrs.field(default=None, validator=_check_rate)
    size: tuple[int, int] | None = attrs.field(default=None, validator=field_check(_check_size, optional=True))
    pixel_format: PixelFormat = attrs.field(default="rgb24", validator=field_check(check_choice, get_args(PixelFormat)))

    def __attrs_post_init__(self) -> None:
        if self.size is not None and self.pixel_format == "yuv420p" and any(side % 2 for side in self.size):
            raise ValueError(expected("size", "even numbers, as 'yuv420p' needs", self.size))


@attrs.frozen(kw_only=True)
class AudioFormat:
    """Sound that a model wants.

    Attributes:
        sample_rate: samples per second.
        chunk: samples per chunk.
        hop: samples from the start of a chunk to the start of the next; ``None``: ``chunk``, so none is sent twice.
        channels: 1 gives arrays of shape ``(chunk,)``, 2 of shape ``(2, chunk)``.
        dtype: ``"float32"`` from -1 to 1, or ``"int16"``.
    """

    sample_rate: int = attrs.field(default=16_000, validator=field_check(check_count, at_most=768_000))
    chunk: int = attrs.field(default=512, validator=field_check(check_count))
    hop: int | None = attrs.field(default=None, validator=field_check(check_count, optional=True))
    channels: int = attrs.field(default=1, validator=field_check(check_count, at_most=2))
    dtype: Dtype = attrs.field(default="float32", validator=field_check(check_choice, get_args(Dtype)))

    def __attrs_post_init__(self) -> None:
        if self.hop is not None:
            check_count("hop", self.hop, at_most=self.chunk)

    @property
    def hop_size(self) -> int:
        """Samples from the start of a chunk to the start of the next."""
        return self.hop or self.chunk

    def chunks_in(self, seconds: float) -> int:
        """Return how many chunks start in a number of seconds, at least one."""
        return max(1, round(seconds * self.sample_rate / self.hop_size))
