"""One voice detector for all conversations of a Pipecat server, instead of a model and a thread for each.

`BatchedVADAnalyzer` replaces `SileroVADAnalyzer`: it has the same weights and rules, so it finds the same speech, but
conversations share the batches of one session. Use one event loop for all conversations, as a server does.

    pip install '.[onnx]' pipecat-ai
    python examples/pipecat_vad.py
"""

import asyncio
import itertools
import wave
from collections import deque
from typing import Any

import numpy as np
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADParams, VADState
from shared_detector import RATE, RECORDING, WINDOW, make_detector

import streaminfer as si

__all__ = ["BatchedVADAnalyzer"]

# Pipecat resets the state of its model in clear silence, because after long noise the model misses speech
RESET_WINDOWS, RESET_CONFIDENCE, RESET_QUIET_WINDOWS = 2 * RATE // WINDOW, 0.1, 5
_conversations = itertools.count()


class BatchedVADAnalyzer(VADAnalyzer):  # type: ignore[misc] # Pipecat is not installed where mypy runs
    """Analyzer of one conversation, around a detector that all conversations share.

    Args:
        detector: a running stack, from `make_detector`.
        params: parameters of Pipecat's own analyzer: durations, confidence and loudness of speech.
    """

    def __init__(self, detector: si.Stack, *, params: VADParams | None = None) -> None:
        super().__init__(sample_rate=RATE, params=params)
        self._detector = detector
        self._states: Any = detector.capabilities().stream_states
        self._conversation = f"conversation-{next(_conversations)}"
        self._confidences: deque[float] = deque()
        self._windows = self._quiet_windows = 0

    def set_sample_rate(self, sample_rate: int) -> None:
        """Set the sample rate.

        Raises:
            ValueError: the model has another sample rate.
        """
        if sample_rate != RATE:
            raise ValueError(f"sample_rate: expected {RATE}, got {sample_rate} (audio_in_sample_rate of the pipeline)")
        super().set_sample_rate(sample_rate)

    def num_frames_required(self) -> int:
        """Return the number of samples of a window."""
        return WINDOW

    async def analyze_audio(self, buffer: bytes) -> VADState:
        """Return the state of the conversation after some more sound; Pipecat calls it for every frame of its input."""
        audio = self._vad_buffer + buffer
        self._confidences.clear()  # left from sound with a window that failed or was cancelled
        for start in range(0, len(audio) - 2 * WINDOW + 1, 2 * WINDOW):
            samples = np.frombuffer(audio, np.int16, WINDOW, start).astype(np.float32) / np.float32(32768)
            confidence = await self._detector(samples, stream_id=self._conversation)
            self._confidences.append(confidence.item())
        return self._run_analyzer(buffer)

    def voice_confidence(self, buffer: bytes) -> float:  # noqa: ARG002 - was computed already
        """Return the confidence of the next window for Pipecat's rules of start and end."""
        confidence = self._confidences.popleft()
        self._windows += 1
        self._quiet_windows = self._quiet_windows + 1 if confidence < RESET_CONFIDENCE else 0
        if (
            self._windows >= RESET_WINDOWS
            and self._quiet_windows >= RESET_QUIET_WINDOWS
            and self._vad_state == VADState.QUIET
        ):
            self._states.reset_stream(self._conversation)
            self._windows = 0
        return confidence

    async def cleanup(self) -> None:
        """End the conversation and free its place in the detector."""
        self._states.end_stream(self._conversation)
        await super().cleanup()


async def main() -> None:
    """Play a recording to eight conversations at the same time."""
    with wave.open(str(RECORDING)) as file:
        sound = file.readframes(file.getnframes())
    async with make_detector() as detector:

        async def converse() -> list[tuple[float, str]]:
            analyzer = BatchedVADAnalyzer(detector)
            analyzer.set_sample_rate(RATE)
            changes = [(0.0, VADState.QUIET.name)]
            for start in range(0, len(sound), 640):  # Pipecat's frames of 20 ms
                state = await analyzer.analyze_audio(sound[start : start + 640])
                if state.name != changes[-1][1]:
                    changes.append((start / 2 / RATE, state.name))
            await analyzer.cleanup()
            return changes

        conversations = await asyncio.gather(*(converse() for _ in range(8)))
        for at_s, state in conversations[0]:
            print(f"{at_s:.2f} s: {state.lower()}")
        print(f"the same in all conversations: {all(one == conversations[0] for one in conversations)}")


if __name__ == "__main__":
    asyncio.run(main())
