"""Phonemes of words of up to 31 letters; words of about the same length share a batch.

    python examples/ragged_text.py [WORD ...]

A batch is a rectangle, and the model reads it letter by letter, so a batch takes as long as its longest word.
`Buckets` pads each word to one of a few lengths, adds the mask that the model reads, and puts only words of one bucket
into a batch: short words do not wait for the letters of long ones. The results are the same as one by one.
"""

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import streaminfer as si

MODEL = Path(__file__).parent / "assets" / "g2p_en.onnx"
LETTERS = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG"),
    *("P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
STRESSED = [f"{vowel}{stress}" for vowel in VOWELS for stress in "012"]
PHONEMES = ("<pad>", "<unk>", "<s>", "</s>", *sorted([*STRESSED, *CONSONANTS, "UW"]))
NUMBERS = {letter: number for number, letter in enumerate(LETTERS)}
LONGEST = 31

TEXT = """
Streaming inference is a pedestrian affair until everybody arrives simultaneously; then an unremarkable microphone
becomes a counterrevolutionary, and a queue of short words waits behind an incomprehensibly long one.
"""


def encode(word: str) -> NDArray[np.int64]:
    """Return the letters of a word and its end marker, as numbers.

    Args:
        word: lower-case letters; the model reads other characters as unknown.

    Returns:
        Shape (len(word) + 1,), int64.
    """
    return np.array([NUMBERS.get(letter, 1) for letter in word] + [2], np.int64)


def decode(phonemes: NDArray[np.int64]) -> str:
    """Return the output of the model as text: the phonemes of CMUdict, vowels with their stress."""
    return " ".join(PHONEMES[number] for number in phonemes.tolist() if number)


def buckets() -> si.batching.Buckets:
    """Return two lengths, end marker included; nearly all words have nine letters or fewer.

    More lengths would pad less, but the batcher must learn each: in real time the tail was no shorter with five.
    """
    return si.batching.Buckets((10, LONGEST + 1), mask="attention_mask")


async def pronounce(words: Sequence[str], batcher: si.AdaptiveBatcher) -> list[str]:
    """Return the phonemes of each word; all requests are sent at once."""
    async with si.Stack(batcher, si.OnnxBackend(MODEL)) as speak:
        return [decode(row) for row in await asyncio.gather(*(speak({"letters": encode(word)}) for word in words))]


def main(words: Sequence[str]) -> None:
    """Print the phonemes of each word, and the batches."""
    batcher = si.AdaptiveBatcher(max_batch_size=8, buckets=buckets())
    for word, sound in zip(words, asyncio.run(pronounce(words, batcher)), strict=True):
        print(f"{word:22}{sound}")
    print("\nbatches by size:", dict(batcher.statistics().batch_sizes))


if __name__ == "__main__":
    main(sys.argv[1:] or sorted(set(re.findall("[a-z]+", TEXT.lower()))))
