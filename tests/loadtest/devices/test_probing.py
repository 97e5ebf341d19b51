"""`probe` on recordings with known faults: its measures are within 10 %, or increase with the fault."""

from fractions import Fraction

import attrs
import av
import numpy as np
import pytest

from streaminfer.errors import InvalidInput
from streaminfer.loadtest.devices import CameraProfile, Delivery, MicrophoneProfile, probe, record, render
from streaminfer.loadtest.devices.delivery import captures
from streaminfer.loadtest.devices.picture_quality import measure_blur, measure_noise

CAMERA = CameraProfile(name="c", width=320, height=240, rate=24.0, codec="mjpeg", bitrate=20_000_000)
MICROPHONE = MicrophoneProfile(name="m", sample_rate=16_000, codec="pcm")


@pytest.fixture
def recorded(tmp_path, clip, bursts):
    """Return a function that records a device and probes the recording."""

    def measure(profile, *, seconds=None, seed=2):
        camera = isinstance(profile, CameraProfile)
        path = tmp_path / "recording.mkv"
        record(clip if camera else bursts, profile, path, seed=seed, seconds=seconds)
        return probe(path, kind="camera" if camera else "microphone")

    return measure


def delays(profile, frames, seed=2):
    timing = captures(profile.delivery, profile.period_s, seed)
    shown = [it for it in (next(timing) for _ in range(frames)) if it.delivered_ns is not None]
    return [(it.delivered_ns - it.captured_ns) / 1e9 for it in shown]


def test_a_recording_without_frames_is_an_error(recorded):
    """Recording a device that loses every frame is an error, even if the path has an earlier recording."""
    recorded(CAMERA, seconds=0.1)
    with pytest.raises(InvalidInput, match="device 'c' loses not all"):
        recorded(attrs.evolve(CAMERA, delivery=Delivery(loss=0.999)), seconds=0.1)


def test_camera_is_recognized(recorded):
    profile = attrs.evolve(CAMERA, codec="h264", bitrate=300_000, key_interval_s=1.0)
    measured = recorded(profile).profile

    assert (measured.width, measured.height, measured.rate, measured.codec) == (320, 240, 24.0, "h264")
    assert measured.key_interval_s == pytest.approx(1.0)
    assert measured.bitrate == pytest.approx(300_000, rel=0.1)


def test_camera_jitter_and_loss_are_within_ten_percent(recorded):
    """The measured jitter and loss of a camera are within 10 % of the true ones."""
    profile = attrs.evolve(CAMERA, width=64, height=48, delivery=Delivery(jitter_s=0.006, loss=0.08, loss_run=2.0))
    measured = recorded(profile)
    truth = delays(profile, 240)

    assert measured.timing.jitter_s == pytest.approx(np.std(truth), rel=0.1)
    assert measured.profile.delivery.loss == pytest.approx(1 - len(truth) / 240, rel=0.1)


def test_blur_is_within_ten_percent(clip):
    frames = render(clip, attrs.evolve(CAMERA, width=640, height=480, blur=2.0), seconds=0.2)

    assert np.mean([measure_blur(frame.reformat(format="gray").to_ndarray()) for frame in frames]) == pytest.approx(
        2.0, rel=0.1
    )


@pytest.mark.parametrize("noise", [4.6, 9.2])
def test_noise_is_within_ten_percent(clip, noise):
    frames = render(clip, attrs.evolve(CAMERA, width=640, height=480, noise=noise), seconds=0.2)

    assert np.mean([measure_noise(frame.reformat(format="gray").to_ndarray()) for frame in frames]) == pytest.approx(
        noise, rel=0.1
    )


@pytest.mark.parametrize(
    ("fault", "strengths", "ours", "sign"),
    [
        ("blur", (0.0, 1.0, 2.0, 4.0), lambda it: it.profile.blur, 1),
        ("blur", (0.0, 1.0, 2.0, 4.0), lambda it: it.measures["blur"], 1),
        ("noise", (0.0, 3.0, 8.0, 20.0), lambda it: it.profile.noise, 1),
        ("exposure_ev", (-2.0, -1.0, 0.0, 1.0), lambda it: it.measures["luma"], 1),
        ("blur", (0.0, 1.0, 2.0, 4.0), lambda it: it.measures["spatial_information"], -1),
    ],
    ids=["blur", "FFmpeg's blur", "noise", "exposure", "detail"],
)
def test_picture_measures_increase_with_the_fault(recorded, fault, strengths, ours, sign):
    measured = [sign * ours(recorded(attrs.evolve(CAMERA, **{fault: it}), seconds=0.5)) for it in strengths]

    assert measured == sorted(measured)
    assert len(set(measured)) == len(measured)


@pytest.mark.parametrize("noise_dbfs", [-50.0, -40.0, -30.0])
def test_noise_and_snr_of_sound_are_within_ten_percent(recorded, noise_dbfs):
    """Noise and SNR of sound are within 10 %; levels are amplitudes, so this is 0.8 dB."""
    measured = recorded(attrs.evolve(MICROPHONE, noise_dbfs=noise_dbfs))

    assert measured.profile.noise_dbfs == pytest.approx(noise_dbfs, abs=0.8)
    assert measured.measures["snr_db"] == pytest.approx(-12 - 3 - noise_dbfs, abs=0.8)


def test_loudness_follows_the_gain(recorded):
    """A gain that is 10 dB lower lowers the loudness (EBU R 128) and the RMS peak by 10 dB."""
    loud, quiet = (recorded(attrs.evolve(MICROPHONE, gain_db=gain)).measures for gain in (0.0, -10.0))

    assert loud["loudness_lufs"] - quiet["loudness_lufs"] == pytest.approx(10.0, abs=0.5)
    assert loud["rms_peak_db"] - quiet["rms_peak_db"] == pytest.approx(10.0, abs=0.5)


def test_clipping_is_within_ten_percent(recorded, bursts):
    profile = attrs.evolve(MICROPHONE, clip_dbfs=-15.0)
    level = 10 ** (-15 / 20)
    sound = np.concatenate([frame.to_ndarray()[0] for frame in render(bursts, MICROPHONE)]) / 32_768
    measured = recorded(profile)

    assert measured.measures["clipped"] == pytest.approx(np.mean(np.abs(sound) >= level), rel=0.1)
    assert measured.profile.clip_dbfs == pytest.approx(-15.0, abs=0.1)


def test_sound_without_clipping_has_none(recorded):
    assert recorded(MICROPHONE).profile.clip_dbfs == 0.0


@pytest.mark.parametrize("jitter_s", [0.004, 0.008])
def test_packet_jitter_and_loss_are_within_ten_percent(recorded, jitter_s):
    """Jitter and loss of packets are within 10 %, even if the jitter hides the period."""
    profile = attrs.evolve(MICROPHONE, delivery=Delivery(jitter_s=jitter_s, loss=0.05, loss_run=2.0))
    measured = recorded(profile)
    truth = delays(profile, 300)

    assert measured.timing.jitter_s == pytest.approx(np.std(truth), rel=0.1)
    assert measured.timing.loss == pytest.approx(1 - len(truth) / 300, rel=0.1)
    assert measured.profile.frame_s == pytest.approx(0.02)


@pytest.mark.parametrize(
    "profile",
    [
        attrs.evolve(CAMERA, codec="vp8", bitrate=500_000),
        attrs.evolve(CAMERA, codec="vp9", bitrate=500_000),
        MicrophoneProfile(name="m", codec="opus"),
        MicrophoneProfile(name="m", codec="aac"),
    ],
    ids=lambda it: it.codec,
)
def test_codec_is_recognized(recorded, profile):
    assert recorded(profile, seconds=1.0).profile.codec == profile.codec


def test_measured_profile_reproduces_the_recording(recorded):
    """A profile measured from a recording produces a recording with about the same jitter and blur."""
    profile = attrs.evolve(CAMERA, width=160, height=120, blur=2.0, delivery=Delivery(jitter_s=0.005))
    first = recorded(profile)
    second = recorded(first.profile)

    assert second.timing.jitter_s == pytest.approx(first.timing.jitter_s, rel=0.15)
    assert second.measures["blur"] > 0.9 * first.measures["blur"]


def test_recording_without_frames_is_rejected(tmp_path, clip):
    broken = tmp_path / "broken.mjpeg"
    broken.write_bytes(b"\xff\xd8\xff\xd9")

    with pytest.raises((InvalidInput, OSError)):
        probe(broken)


def test_pictures_that_are_too_small_are_named(tmp_path):
    with av.open(tmp_path / "small.mkv", "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width = stream.height = 2
        picture = av.VideoFrame.from_ndarray(np.zeros((2, 2, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(picture.reformat(format="yuv420p")) + stream.encode(None))

    with pytest.raises(InvalidInput, match="source: expected pictures of at least 16 × 16 pixels, got 2 × 2"):
        probe(tmp_path / "small.mkv")


def test_missing_media_kind_is_named(speech):
    with pytest.raises(ValueError, match="expected a recording with pictures"):
        probe(speech, kind="camera")


def test_pictures_in_the_order_of_decoding(tmp_path):
    """A file whose encoder reorders pictures has a steady rate."""
    path = tmp_path / "ahead.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        pictures = [av.VideoFrame(64, 48, "yuv420p") for _ in range(24)]
        container.mux([packet for picture in [*pictures, None] for packet in stream.encode(picture)])

    measured = probe(path)

    assert measured.profile.rate == 25.0
    assert measured.timing.jitter_s < 1e-4


def test_pictures_held_back_by_decoder_are_measured(clip):
    """Pictures are measured even if few are read, although the decoder returns the first ones after later packets."""
    assert probe(clip, seconds=0.01).timing.frames == 1
    assert probe(clip, seconds=0.1).measures["luma"] == pytest.approx(probe(clip, seconds=0.3).measures["luma"], 0.01)


def test_pictures_of_each_size_are_measured_separately(tmp_path):
    """Pictures of a smaller size do not change the measures: a filter of the larger size would read beyond them."""

    def measure(*sizes):
        paths = [tmp_path / f"{side}.mjpeg" for side in sizes]
        for path, side in zip(paths, sizes, strict=True):
            with av.open(str(path), "w") as container:
                stream = container.add_stream("mjpeg", rate=25, options={"q": "2"})
                stream.width = stream.height = side
                stream.pix_fmt = "yuvj420p"
                chance = np.random.default_rng(0)
                for _ in range(20):
                    picture = chance.integers(0, 256, (side, side), np.uint8)
                    container.mux(
                        stream.encode(av.VideoFrame.from_ndarray(picture, "gray").reformat(format="yuvj420p"))
                    )
        both = tmp_path / "both.mjpeg"
        both.write_bytes(b"".join(path.read_bytes() for path in paths))
        return probe(both).measures

    alone, changed = measure(512), measure(512, 64)
    assert changed == pytest.approx(alone, rel=0.1, abs=1.0)


def test_sound_that_changes_is_named(tmp_path):
    """A change of the sample rate, as by the sender of a stream, is an error that names both kinds of sound."""
    path = tmp_path / "both.aac"
    for rate in (48_000, 44_100):
        with av.open(str(tmp_path / "one.aac"), "w", format="adts") as container:
            stream = container.add_stream("aac", rate=rate, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1_024), np.float32), "fltp", "mono")
            frame.sample_rate = rate
            container.mux([packet for it in (frame, None) for packet in stream.encode(it)])
        with path.open("ab") as both:
            both.write((tmp_path / "one.aac").read_bytes())

    with pytest.raises(InvalidInput, match=r"sound of one kind, got \(44100, .* behind \(48000, "):
        probe(path, kind="microphone")


def test_packets_that_a_decoder_rejects_are_counted(tmp_path):
    """`probe` counts a packet as corrupt whichever error its decoder raises."""
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1_024), np.float32), "fltp", "mono")
        frame.sample_rate = 48_000
        (*_, whole) = [packet for it in (frame, None) for packet in stream.encode(it)]
        for number, data in enumerate([bytes(whole), b"\xa5", b"\xff\xfb", bytes(whole)]):
            packet = av.Packet(data)
            packet.stream, packet.pts, packet.dts, packet.time_base = (
                stream,
                *2 * (number * 1_024,),
                Fraction(1, 48_000),
            )
            container.mux(packet)

    assert probe(path, kind="microphone").corrupt == 2


def test_silence_does_not_clip(tmp_path):
    """Silence has no clipping, although its highest level is also its lowest; the clipped share is at most 1."""
    path = tmp_path / "silence.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        container.mux([packet for it in (frame, None) for packet in stream.encode(it)])

    measured = probe(path, kind="microphone")

    assert measured.measures["clipped"] <= 1.0
    assert measured.profile.clip_dbfs == 0.0


def test_blur_of_a_slope_is_within_a_profile():
    """A picture without edges has the largest blur that a profile can have, and not more."""
    slopes = [np.tile(np.arange(0, width, dtype=np.uint8), (20, 1)) for width in range(20, 256)]

    assert max(measure_blur(slope) for slope in slopes) == 1_024.0
