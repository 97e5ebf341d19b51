"""The unbatched voice detector, written by hand without this library: sessions, some threads and a dict of states."""

import asyncio
import itertools
import time
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

__all__ = ["DetectorByHand"]

Floats = NDArray[np.float32]
SAMPLE_RATE = np.array(16_000, np.int64)
CONTEXT = 64
START = np.zeros(CONTEXT, np.float32), np.zeros((2, 1, 128), np.float32)
"""Context and state of a stream before its first chunk."""


class DetectorByHand:
    """Silero's voice detector, one chunk a call; an asynchronous context manager.

    Args:
        model: path of the model.
        sessions: number of onnxruntime sessions, which take turns.
        threads: number of threads that run them; 0 runs them on the event loop, which blocks for the 0.1 ms of each
            chunk and saves two thread switches.
    """

    clock = staticmethod(time.monotonic_ns)

    def __init__(self, model: Path, sessions: int, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._sessions = itertools.cycle([ort.InferenceSession(str(model), options) for _ in range(sessions)])
        self._executor = ThreadPoolExecutor(threads) if threads else None
        self._streams: dict[Hashable, tuple[Floats, Floats]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown()

    async def detect(
        self, stream_id: Hashable, chunk: Floats, deadline_ns: int, *, discontinuity: bool = False
    ) -> float | None:
        """Return the probability of speech, or ``None`` if the chunk was late before its turn and was skipped."""
        context, state = START if discontinuity else self._streams.get(stream_id, START)
        samples = np.concatenate([context, chunk])[np.newaxis]
        if self._executor is None:
            found = self._run(samples, state, deadline_ns)
        else:
            found = await asyncio.get_running_loop().run_in_executor(
                self._executor, self._run, samples, state, deadline_ns
            )
        if found is None:
            return None
        probability, state = found
        self._streams[stream_id] = chunk[-CONTEXT:], state
        return probability

    def _run(self, samples: Floats, state: Floats, deadline_ns: int) -> tuple[float, Floats] | None:
        if time.monotonic_ns() > deadline_ns:
            return None
        output, state = next(self._sessions).run(None, {"input": samples, "state": state, "sr": SAMPLE_RATE})
        return output.item(), state
