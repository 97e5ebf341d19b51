"""One voice detector of your own for all conversations of a LiveKit agent, instead of a thread for each.

`BatchedVAD` is LiveKit's `inference.VAD` with the same events, options and rules, but with your model: all
conversations of the process share the batches of one session.

    pip install '.[onnx]' livekit-agents
    python examples/livekit_vad.py
"""

import asyncio
import itertools
import wave
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from livekit import rtc
from livekit.agents import inference, vad
from numpy.typing import NDArray
from shared_detector import RATE, RECORDING, make_detector

import streaminfer as si

__all__ = ["BatchedVAD"]

_conversations = itertools.count()


class OnTheLoop(Executor):
    """Executor in place of LiveKit's thread, for functions that return an awaitable."""

    def submit(self, fn: Callable[..., Awaitable[Any]], /, *args: Any) -> Any:  # type: ignore[override]
        """Run the awaitable as a task, which `run_in_executor` accepts as a future."""
        return asyncio.ensure_future(fn(*args))


class Conversation:
    """The model of one stream, with the methods of LiveKit's native one.

    Args:
        detector: a running stack.
    """

    def __init__(self, detector: si.Stack) -> None:
        self._detector = detector
        self._states: Any = detector.capabilities().stream_states
        self._stream_id = f"conversation-{next(_conversations)}"

    def predict(self, pcm: NDArray[np.int16]) -> Awaitable[float]:
        """Return the probability of speech in a window."""
        return self._predict(pcm.astype(np.float32) / np.float32(32768))

    async def _predict(self, samples: NDArray[np.float32]) -> float:
        probability = await self._detector(samples, stream_id=self._stream_id)
        return float(probability.item())

    def reset(self) -> None:
        """Reset the state: the next window begins another segment."""
        self._states.reset_stream(self._stream_id)

    def close(self) -> None:
        """End the stream and free its place in the detector."""
        self._states.end_stream(self._stream_id)


class BatchedVAD(inference.VAD):  # type: ignore[misc] # LiveKit is not installed where mypy runs
    """LiveKit's voice activity detection over a detector that all conversations share.

    Args:
        detector: a running stack, from `make_detector`.
        options: options of `inference.VAD`, such as minimum durations and thresholds of speech.
    """

    def __init__(self, detector: si.Stack, **options: Any) -> None:
        super().__init__(executor=OnTheLoop(), **options)
        self._detector = detector

    def stream(self) -> vad.VADStream:
        """Return the stream of one conversation."""
        stream = super().stream()
        stream._native_vad = conversation = Conversation(self._detector)
        stream._task.add_done_callback(lambda _: conversation.close())
        return stream


async def main() -> None:
    """Play a recording to eight conversations at the same time."""
    with wave.open(str(RECORDING)) as file:
        sound = file.readframes(file.getnframes()) + bytes(2 * RATE)  # and a second of silence
    async with make_detector() as detector:
        voices = BatchedVAD(detector)

        async def converse() -> list[tuple[str, float]]:
            stream = voices.stream()
            for start in range(0, len(sound), 640):  # LiveKit's frames of 20 ms
                stream.push_frame(
                    rtc.AudioFrame(sound[start : start + 640], RATE, 1, len(sound[start : start + 640]) // 2)
                )
            stream.end_input()
            segments = [
                (event.type.value, event.samples_index / RATE)
                async for event in stream
                if event.type is not vad.VADEventType.INFERENCE_DONE
            ]
            await stream.aclose()
            return segments

        conversations = await asyncio.gather(*(converse() for _ in range(8)))
        for what, at_s in conversations[0]:
            print(f"{at_s:.2f} s: {what.replace('_', ' ')}")
        print(f"the same in all conversations: {all(one == conversations[0] for one in conversations)}")


if __name__ == "__main__":
    asyncio.run(main())
