import importlib
import wave

import numpy as np
import pytest


@pytest.fixture
def audio(_examples_can_be_imported):
    return importlib.import_module("demo.audio")


@pytest.fixture
def recognition(_examples_can_be_imported):
    return importlib.import_module("demo.recognition")


def write(path, samples, rate=16_000):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.asarray(samples, np.int16).tobytes())
    return path


def test_a_recording_is_cut_into_whole_chunks(audio, tmp_path):
    samples = np.arange(1300, dtype=np.int16)
    clip = audio.load_clip(write(tmp_path / "a.wav", samples))
    assert len(clip.chunks) == 3
    assert clip.duration_s == pytest.approx(0.096)
    assert all(chunk.shape == (512,) and chunk.dtype == np.float32 for chunk in clip.chunks)
    heard = np.concatenate(clip.chunks)
    assert np.array_equal(heard[:1300] * 32768, samples)
    assert not heard[1300:].any()


def test_other_audio_formats_are_rejected(audio, tmp_path):
    with pytest.raises(ValueError, match=r"a\.wav: expected one channel of 16-bit samples at 16000 Hz"):
        audio.load_clip(write(tmp_path / "a.wav", [0] * 100, rate=8_000))


def test_microphones_are_compared_with_the_reference(recognition):
    reference = np.array([0.1, 0.9, 0.9, 0.2], np.float32)
    nan = np.nan
    heard = [
        np.array([0.1, 0.9, 0.9, 0.2, 0.1, 0.9], np.float32),  # intact
        np.array([0.1, 0.4, 0.9, 0.2], np.float32),  # intact, and wrong once
        np.array([0.1, nan, 0.9, 0.9, 0.1, 0.9, 0.9], np.float32),  # one lost, one wrong after it; then the clip again
    ]
    speech = recognition.compare_speech(heard, reference)
    assert (speech.microphones, speech.intact, speech.agreeing) == (3, 2, 1)
    assert (speech.after_loss, speech.after_loss_agreeing) == (2, 1)
    assert speech.largest_difference == pytest.approx(0.5)
    assert np.array_equal(speech.probabilities, reference)
    assert speech.heard_s == pytest.approx(0.128)


def test_comparison_without_any_response(recognition):
    reference = np.array([0.1, 0.9], np.float32)
    speech = recognition.compare_speech([np.empty(0, np.float32), np.array([np.nan], np.float32)], reference)
    assert (speech.segments, speech.heard_s, speech.largest_difference) == ([], 0.0, 0.0)
    assert (speech.microphones, speech.intact, speech.after_loss) == (2, 0, 0)
