"""Many microphones through one session of a recurrent voice detector. Run it from the root of a checkout.

Each microphone sends the recording from another start, in chunks of 32 ms; the detector keeps the state of each.
"""

import asyncio
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import streaminfer as si
from streaminfer.streams import StatefulBackend

ASSETS = Path(__file__).parent / "assets"
CHUNK, CONTEXT, RATE = 512, 64, 16_000
MICROPHONES = 24


def load_chunks() -> NDArray[np.float32]:
    """Return the recording, shape (chunks, 512)."""
    with wave.open(str(ASSETS / "librivox_0870.wav")) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32)
    sound /= 32768
    return sound[: sound.size // CHUNK * CHUNK].reshape(-1, CHUNK)


def make_detector() -> StatefulBackend:
    """Return the detector: float32[512] of a stream → the probability of speech, float32[1]."""
    model = si.OnnxBackend(
        ASSETS / "silero_vad_16k_op15.onnx",
        batch_axes={"state": 1, "stateN": 1},
        shared_inputs={"sr": np.array(RATE)},
        example={"input": np.zeros(CONTEXT + CHUNK, np.float32), "state": np.zeros((2, 128), np.float32)},
    )
    return StatefulBackend(model, state={"state": "stateN"}, context={"input": CONTEXT})


async def listen(detect: si.Stack, chunks: NDArray[np.float32], name: str) -> float:
    """Return the seconds of speech in the sound of a microphone."""
    probabilities = [float((await detect(chunk, stream_id=name))[0]) for chunk in chunks]
    return sum(probability > 0.5 for probability in probabilities) * CHUNK / RATE


async def main() -> list[float]:
    """Print the speech of each microphone, and how the model was used."""
    detector, batcher = make_detector(), si.AdaptiveBatcher(max_batch_size=32)
    chunks = load_chunks()
    async with si.Stack(batcher, detector) as detect:
        heard = await asyncio.gather(
            *(listen(detect, np.roll(chunks, -9 * number, axis=0), f"mic {number}") for number in range(MICROPHONES))
        )
        statistics = detector.statistics()
    print(f"{MICROPHONES} microphones heard {min(heard):.2f} to {max(heard):.2f} s of speech")
    print(f"{batcher.statistics().batches} batches, {statistics.sticky_batches} of them copied no state")
    return heard


if __name__ == "__main__":
    asyncio.run(main())
