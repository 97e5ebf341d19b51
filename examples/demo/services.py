"""The services of the demo: one voice detector for all microphones, one face detector for all cameras.

The same microphones meet the voice detector in several ways: batched, and unbatched in every way that a developer might
choose, of which the best on this machine becomes the baseline.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

import streaminfer as si
from demo.audio import CHUNK, CHUNK_S
from demo.faces import FULL
from demo.live_page import show
from streaminfer.streams import StatefulBackend

__all__ = ["ASSETS", "UNBATCHED", "Way", "batched", "face_service", "voice_service"]

ASSETS = Path(__file__).resolve().parent.parent / "assets"
VOICE_MODEL = ASSETS / "silero_vad_16k_op15.onnx"
SAMPLE_RATE = np.array(16_000, np.int64)
CONTEXT = 64
"""Samples of the chunk before that the voice detector reads again."""
MOST_STREAMS = 16_384
"""As many chunks may wait as there can be microphones: deadlines decide what is dropped, not the length of a queue."""


@attrs.frozen
class Way:
    """One way to serve the voice detector.

    Attributes:
        name: for people.
        max_batch_size: of the batcher.
        max_in_flight: batches at once; ``None``: no batcher at all, every request goes to the sessions' own queue.
        sessions: onnxruntime sessions, each with a thread; 0: one session that runs on the event loop itself.
    """

    name: str
    max_batch_size: int = 1
    max_in_flight: int | None = 1
    sessions: int = 1


def batched(sessions: int = 1) -> Way:
    """Batches of whatever has come while the model was busy, 64 chunks at most.

    Args:
        sessions: how many batches may run at the same time.
    """
    name = "batched" if sessions == 1 else f"batched, {sessions} sessions"
    return Way(name, max_batch_size=64, max_in_flight=sessions, sessions=sessions)


UNBATCHED = (
    Way("no batcher, 1 session", max_in_flight=None),
    Way("no batcher, 2 sessions", max_in_flight=None, sessions=2),
    Way("batches of one, 1 session", max_in_flight=1),
    Way("batches of one, 2 sessions", max_in_flight=2, sessions=2),
    # no thread at all: it stops the event loop for the 0.1 ms of each chunk, and saves two thread switches
    Way("batches of one, on the event loop", sessions=0),
)


def voice_service(way: Way, slo: si.SLO | None = None) -> si.Stack:
    """Silero's voice detector, which keeps the state of each stream: ``float32[512]`` → ``float32[1]``.

    Args:
        way: how to serve it.
        slo: an objective to keep.
    """
    model: Any
    example = {"input": np.zeros(CONTEXT + CHUNK, np.float32), "state": np.zeros((2, 128), np.float32)}
    if way.sessions:
        model = si.OnnxBackend(
            VOICE_MODEL,
            sessions=way.sessions,
            batch_axes={"state": 1, "stateN": 1},
            shared_inputs={"sr": SAMPLE_RATE},
            warmup=tuple(sorted({1, way.max_batch_size})),
            example=example,
        )
    else:
        model = si.CpuBackend(_one_at_a_time(), executor="inline", example=example)
    backend = StatefulBackend(model, state={"state": "stateN"}, context={"input": CONTEXT}, max_streams=MOST_STREAMS)
    layers: list[Any] = [si.Telemetry(way.name, slo=slo)]
    if way.max_in_flight is not None:
        layers.append(
            si.AdaptiveBatcher(
                max_batch_size=way.max_batch_size,
                slo_s=CHUNK_S,
                max_in_flight=way.max_in_flight,
                max_queue_size=MOST_STREAMS,
            )
        )
    return show(si.Stack(*layers, backend))


def face_service(name: str = "cameras", *, cache: si.EdgeCache | None = None, slo: si.SLO | None = None) -> si.Stack:
    """BlazeFace: ``float32[192, 192, 3]`` → ``{"boxes": float32[2304, 16], "scores": float32[2304, 1]}``.

    Batching helps recurrent models and *hurts* these convolutions on a CPU: a frame costs 3.0 ms of CPU alone, 3.6 in a
    batch of 4, 4.9 in one of 32. So batches of one; the batcher is here for its queue and its deadlines.

    Args:
        name: for the telemetry.
        cache: keeps answers; ``None``: every frame goes to the model.
        slo: an objective to keep.
    """
    layers: list[Any] = [si.Telemetry(name, slo=slo)]
    if cache is not None:
        layers.append(cache)
    layers.append(si.AdaptiveBatcher(max_batch_size=1, max_queue_size=MOST_STREAMS))
    return show(si.Stack(*layers, si.OnnxBackend(ASSETS / FULL.file, warmup=(1,))))


def _one_at_a_time() -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(VOICE_MODEL), options)

    def answer(inputs: Mapping[str, NDArray[np.float32]]) -> Sequence[Mapping[str, NDArray[np.float32]]]:
        # a batch of one, the state stacked on axis 0: what the model wants on axis 1 is the same memory
        state = inputs["state"].reshape(2, 1, 128)
        output, new_state = session.run(None, {"input": inputs["input"], "state": state, "sr": SAMPLE_RATE})
        return [{"output": output[0], "stateN": new_state[:, 0]}]

    return answer
