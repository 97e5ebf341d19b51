"""Real models for the measurements, each with the inputs of its requests and the assembly of its batches."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import streaminfer as si

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ASSETS = EXAMPLES / "assets"
DOCS = EXAMPLES.parent / "docs"
sys.path.insert(0, str(EXAMPLES))

from demo.audio import load_clip  # noqa: E402 - from a folder of scripts
from ragged_text import buckets, encode  # noqa: E402 - the same


@attrs.frozen
class Model:
    """A model under measurement.

    Attributes:
        name: name in the tables.
        make: makes the backend, with one session of one thread.
        inputs: inputs of the requests, in turn.
        assemble: makes a batch of such inputs in the obvious way.
        buckets: length buckets for the planner, if rows differ in length.
    """

    name: str
    make: Callable[[], si.OnnxBackend]
    inputs: list[Any]
    assemble: Callable[[list[Any]], Any]
    buckets: si.batching.Buckets | None = None


def silero() -> Model:
    """Return silero with chunks of 32 ms of a recording, each with the state of a detector that has heard nothing."""
    samples = np.pad(load_clip(ASSETS / "librivox_0870.wav").samples, (64, 0))
    chunks = np.lib.stride_tricks.sliding_window_view(samples, 576)[::512]  # each begins with the end of the one before
    silence = np.zeros((2, 128), np.float32)
    return Model(
        "silero VAD",
        lambda: si.OnnxBackend(
            ASSETS / "silero_vad_16k_op15.onnx",
            batch_axes={"state": 1, "stateN": 1},
            shared_inputs={"sr": np.array(16000)},
            example={"input": chunks[0], "state": silence},
        ),
        [{"input": chunk, "state": silence} for chunk in chunks],
        lambda rows: {
            "input": np.stack([row["input"] for row in rows]),
            "state": np.stack([row["state"] for row in rows], axis=1),
        },
    )


def blazeface() -> Model:
    """Return BlazeFace with images of noise, because the cost of a convolution does not depend on its input."""
    images = np.random.default_rng(0).uniform(-1, 1, (8, 192, 192, 3)).astype(np.float32)
    return Model("BlazeFace full", lambda: si.OnnxBackend(ASSETS / "blaze_full.onnx"), list(images), np.stack)


def pad(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return ragged rows as one array, padded to the longest, with a mask."""
    letters = np.zeros((len(rows), max(len(row["letters"]) for row in rows)), np.int64)
    mask = np.zeros_like(letters)
    for number, row in enumerate(rows):
        length = len(row["letters"])
        letters[number, :length] = row["letters"]
        mask[number, :length] = 1
    return {"letters": letters, "attention_mask": mask}


def phonemes() -> Model:
    """Return G2P with the distinct words of 2 to 20 letters in this project's documentation, shuffled."""
    text = " ".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md")))
    words = sorted(set(re.findall(r"\b[a-z]{2,20}\b", text.lower())))
    np.random.default_rng(0).shuffle(words)
    return Model(
        "G2P, ragged words",
        lambda: si.OnnxBackend(ASSETS / "g2p_en.onnx"),
        [{"letters": encode(word)} for word in words],
        pad,
        buckets(),
    )


MODELS = {"silero": silero, "blazeface": blazeface, "g2p": phonemes}
