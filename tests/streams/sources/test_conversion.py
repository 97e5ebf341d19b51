"""Conversion for a model: pictures are scaled, reformatted and turned, and sound is resampled and mixed."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest

av = pytest.importorskip("av")

from streaminfer.streams.sources.conversion import AudioAssembler, PictureConverter  # noqa: E402 - needs PyAV
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat  # noqa: E402 - likewise
from streaminfer.streams.sources.timestamps import Stamp  # noqa: E402 - likewise


def picture(pixel_format, checks=0):
    """Return a picture of 64×48 pixels with all colors: smooth, or with brighter and darker pixels in turn."""
    y, x = np.mgrid[0:48, 0:64]
    rgb = np.stack([40 + 3 * x, 40 + 4 * y, 200 - x - 2 * y], axis=-1)
    rgb = (rgb + checks * (-1) ** (x + y)[..., None]).astype(np.uint8)
    return av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=pixel_format)


@pytest.mark.parametrize("source", ["yuv420p", "yuvj420p", "yuv444p"])
@pytest.mark.parametrize("wanted", ["rgb24", "bgra", "gray"])
@pytest.mark.parametrize("size", [(32, 24), (31, 23)], ids=["even", "odd"])
def test_shrunk_picture_has_the_mean_colors(source, wanted, size):
    """Each pixel is about the mean of the source pixels that it covers, for any format of the source."""
    frame = picture(source, checks=20)

    made = PictureConverter(av, VideoFormat(size=size, pixel_format=wanted), threads=1)(frame)

    rows, columns = (np.linspace(0, side, count + 1) for side, count in ((48, size[1]), (64, size[0])))
    center_y, center_x = (rows[:-1] + rows[1:] - 1) / 2, (columns[:-1] + columns[1:] - 1) / 2
    red, green = 40 + 3 * center_x[None, :] + 0 * center_y[:, None], 40 + 4 * center_y[:, None] + 0 * center_x[None, :]
    blue = 200 - center_x[None, :] - 2 * center_y[:, None]
    expected = {
        "rgb24": np.stack([red, green, blue], -1),
        "bgra": np.stack([blue, green, red, np.full_like(red, 255)], -1),
        "gray": 0.299 * red + 0.587 * green + 0.114 * blue,
    }[wanted]
    assert made.flags.c_contiguous
    assert made.shape == expected.shape
    assert np.abs(made - expected)[1:-1, 1:-1].mean() < (1 if wanted == "gray" else 4)


@pytest.mark.parametrize("wanted", ["rgb24", "rgba", "bgra"])
@pytest.mark.parametrize("source", ["yuv420p", "yuvj422p"])
def test_rows_of_any_length_are_whole(source, wanted):
    """Rows of any width are written to their end.

    FFmpeg's fast conversion to four bytes per pixel leaves up to four pixels at the end of a row unwritten.
    """
    for width in range(16, 52, 2):
        gray = np.full((2, 50, width, 3), 20, np.uint8)
        gray[1] = 230
        frames = [av.VideoFrame.from_ndarray(one, "rgb24").reformat(format=source) for one in gray]
        for size in (None, (width // 2, 25)):
            convert = PictureConverter(av, VideoFormat(size=size, pixel_format=wanted), threads=1)
            for number in range(8):  # in the memory of an earlier picture
                level = (20, 230)[number % 2]
                assert np.abs(convert(frames[number % 2])[..., :3].astype(int) - level).max() < 12, (width, size)


@pytest.mark.parametrize("wanted", ["rgb24", "rgba", "bgra", "gray"])
@pytest.mark.parametrize("width", [854, 304, 296, 300, 50])
def test_ffmpeg_threads_leave_rows_of_others_alone(width, wanted):
    """The threads of FFmpeg do not write into each other's rows.

    With four bytes per pixel, FFmpeg writes beyond the end of a row, possibly into a row that another thread has made;
    the converter then uses one thread.
    """
    asked = []

    class Recording:
        def __init__(self):
            self._real = av.video.reformatter.VideoReformatter()

        def reformat(self, *given, threads, **named):
            asked.append(threads)
            return self._real.reformat(*given, threads=threads, **named)

    recording = SimpleNamespace(video=SimpleNamespace(reformatter=SimpleNamespace(VideoReformatter=Recording)))
    frame = av.VideoFrame.from_ndarray(np.full((48, width, 3), 120, np.uint8), "rgb24").reformat(format="yuv420p")
    form = VideoFormat(pixel_format=wanted)
    expected = PictureConverter(av, form, threads=1)(frame)
    convert = PictureConverter(recording, form, threads=4)

    assert all(np.array_equal(convert(frame), expected) for _ in range(25))
    assert set(asked) == {1 if wanted in {"rgba", "bgra"} and width % 16 else 4}


def test_pictures_do_not_share_memory():
    frame = picture("yuv420p")
    convert = PictureConverter(av, VideoFormat(size=(64, 24)), threads=1)
    first = convert(frame)
    kept = first.copy()

    convert(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24").reformat(format="yuv420p"))

    assert np.array_equal(first, kept)


@pytest.mark.parametrize("rate", [44_100, 48_000])
@pytest.mark.parametrize("wanted", [8_000, 16_000])
def test_resampled_chunks_are_where_they_were(rate, wanted):
    """A chunk has the position and the instant of its samples, although the resampler holds some samples back."""
    sound, chunks = AudioAssembler(av, AudioFormat(sample_rate=wanted, chunk=200)), []
    for number in range(100):
        frame = av.AudioFrame(format="fltp", layout="mono", samples=rate // 100)
        frame.sample_rate = rate
        chunks += sound.push(frame, Stamp(10_000_000 * number, 10_000_000 * (number + 1), False))
    chunks += sound.flush()

    assert len(chunks) == wanted // 200
    for number, chunk in enumerate(chunks):
        assert chunk.position_s == pytest.approx(200 * number / wanted, abs=5e-9)
        assert chunk.captured_ns == pytest.approx(200 * (number + 1) / wanted * 1e9, abs=5)


@pytest.mark.parametrize("layout", ["stereo", "quad", "5.1", "7.1"])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_a_mix_is_no_louder_than_its_channels(layout, dtype):
    """A mix of all channels to one is no louder than each channel.

    FFmpeg limits only mixes of integers; its mix of 5.1 channels of floats is 2.4 times as loud and exceeds 1.
    """
    samples = np.full((1, 1_000 * av.AudioLayout(layout).nb_channels), 0.5, np.float32)
    frame = av.AudioFrame.from_ndarray(samples, "flt", layout)
    frame.sample_rate = 16_000

    chunks = AudioAssembler(av, AudioFormat(chunk=500, dtype=dtype)).push(frame, Stamp(0, 0, False))

    assert chunks[1].inputs == pytest.approx(np.full(500, 0.5 if dtype == "float32" else 16_384), abs=2e-4, rel=1e-4)


MATRICES = {0: (1, 0, 0, 1), 1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}
"""Elements a, b, c and d of the matrix in a track's header, by the number of quarter turns counterclockwise."""


def read_turned(path, turns, **wanted):
    """Write ``turns`` into the header of a copy of an MP4 file; return its first picture, converted."""
    a, b, c, d = (value << 16 for value in MATRICES[turns])
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned = path.with_name(f"{turns}.mp4")
    turned.write_bytes(content)
    with av.open(str(turned)) as file:
        return PictureConverter(av, VideoFormat(**wanted), threads=1)(next(file.decode(video=0)))


def planes(array, pixel_format):
    """Return the planes that are turned separately: the picture, or its luma and its two chroma planes."""
    if pixel_format != "yuv420p":
        return [array]
    frame = av.VideoFrame.from_ndarray(array, pixel_format)
    views = [(np.frombuffer(plane, np.uint8).reshape(plane.height, -1), plane.width) for plane in frame.planes]
    return [view[:, :width] for view, width in views]


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("pixel_format", ["rgb24", "rgba", "gray", "yuv420p"])
@pytest.mark.parametrize("size", [None, (32, 24)], ids=["whole", "shrunk"])
def test_a_picture_of_a_turned_camera_is_upright(tmp_path, turns, pixel_format, size):
    path = tmp_path / "camera.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        file.mux([*stream.encode(picture("yuv420p")), *stream.encode()])
    upright = read_turned(path, 0, pixel_format=pixel_format, size=size)
    turned_size = size[::-1] if size is not None and turns % 2 else size

    made = read_turned(path, turns, pixel_format=pixel_format, size=turned_size)

    assert made.flags.c_contiguous
    for plane, expected in zip(planes(made, pixel_format), planes(upright, pixel_format), strict=True):
        assert np.array_equal(plane, np.rot90(expected, turns))
