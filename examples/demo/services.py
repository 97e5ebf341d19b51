"""Services of the demo: one voice detector for all microphones, one face detector for all cameras.

The voice detector serves the same microphones in several ways: batched by this library, and unbatched in several ways
by hand. The best of these on this machine is the baseline.
"""

from pathlib import Path
from typing import Any

import attrs
import numpy as np

import streaminfer as si
from demo.audio import CHUNK, CHUNK_S
from demo.by_hand import CONTEXT, SAMPLE_RATE, DetectorByHand
from demo.faces import FULL
from demo.live_page import show
from streaminfer.streams import StatefulBackend

__all__ = ["ASSETS", "UNBATCHED", "Way", "batched", "detector_by_hand", "face_service", "voice_service"]

ASSETS = Path(__file__).resolve().parent.parent / "assets"
VOICE_MODEL = ASSETS / "silero_vad_16k_op15.onnx"
FOLDED_VOICE_MODEL = ASSETS / "silero_vad_16k_folded.onnx"
"""The same model for batches; single rows are faster on `VOICE_MODEL`, so the ways by hand use that."""
MAX_BATCH_SIZE = 64
MAX_STREAMS = 16_384
"""Queue places for all possible microphones, so that deadlines decide which chunks are dropped, not the queue."""


@attrs.frozen
class Way:
    """One way to serve the voice detector.

    Attributes:
        name: name to show.
        sessions: number of onnxruntime sessions.
        threads: number of threads that run the sessions; 0 runs them on the event loop.
        batched: batched by this library, with a thread for each session; otherwise by hand, one chunk after the other.
    """

    name: str
    sessions: int = 1
    threads: int = 1
    batched: bool = False


def batched(sessions: int = 1) -> Way:
    """Return the batched way, with at most 64 chunks per batch.

    Args:
        sessions: number of batches that may run at the same time.
    """
    name = "batched" if sessions == 1 else f"batched, {sessions} sessions"
    return Way(name, sessions, sessions, batched=True)


UNBATCHED = (
    Way("by hand, on the event loop", threads=0),
    Way("by hand, 1 session, 1 thread"),
    Way("by hand, 1 session, 2 threads", threads=2),
    Way("by hand, 2 sessions, 2 threads", sessions=2, threads=2),
)


def detector_by_hand(way: Way) -> DetectorByHand:
    """Return silero's voice detector without this library."""
    return DetectorByHand(VOICE_MODEL, way.sessions, way.threads)


def voice_service(way: Way) -> si.Stack:
    """Return silero's voice detector with the state of each stream: ``float32[512]`` → ``float32[1]``.

    Its convolutions are folded, so a batch of 32 takes a quarter of the time of 32 single rows instead of half.
    """
    model = si.OnnxBackend(
        FOLDED_VOICE_MODEL,
        sessions=way.sessions,
        batch_axes={"state": 1, "stateN": 1},
        shared_inputs={"sr": SAMPLE_RATE},
        warmup=(1, MAX_BATCH_SIZE),
        example={"input": np.zeros(CONTEXT + CHUNK, np.float32), "state": np.zeros((2, 128), np.float32)},
    )
    return show(
        si.Stack(
            si.Telemetry(way.name),
            si.AdaptiveBatcher(
                max_batch_size=MAX_BATCH_SIZE, slo_s=CHUNK_S, max_in_flight=way.sessions, max_queue_size=MAX_STREAMS
            ),
            StatefulBackend(model, state={"state": "stateN"}, context={"input": CONTEXT}, max_streams=MAX_STREAMS),
        )
    )


def face_service(name: str = "cameras", *, cache: si.EdgeCache | None = None, slo: si.SLO | None = None) -> si.Stack:
    """Return BlazeFace: ``float32[192, 192, 3]`` → ``{"boxes": float32[2304, 16], "scores": float32[2304, 1]}``.

    Batching helps recurrent models and *hurts* these convolutions on a CPU: a frame costs 3.0 ms of CPU alone, 3.6 in a
    batch of 4, and 4.9 in a batch of 32. So batches have one row; the batcher provides the queue and the deadlines.

    Args:
        name: name for the telemetry.
        cache: stores responses; ``None`` sends every frame to the model.
        slo: objective to count.
    """
    layers: list[Any] = [si.Telemetry(name, slo=slo)]
    if cache is not None:
        layers.append(cache)
    layers.append(si.AdaptiveBatcher(max_batch_size=1, max_queue_size=MAX_STREAMS))
    return show(si.Stack(*layers, si.OnnxBackend(ASSETS / FULL.file, warmup=(1,))))
