"""The services of the demo: one voice detector for all microphones, one face detector for all cameras.

The same microphones meet the voice detector in several ways: batched by this library, and unbatched as one writes it by
hand, of which the best way on this machine becomes the baseline.
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
"""The same model for batches; one row alone takes longer than on `VOICE_MODEL`, so the ways by hand have that."""
MAX_BATCH_SIZE = 64
MAX_STREAMS = 16_384
"""As many chunks may wait as there can be microphones: deadlines decide what is dropped, not the length of a queue."""


@attrs.frozen
class Way:
    """One way to serve the voice detector.

    Attributes:
        name: for people.
        sessions: of onnxruntime.
        threads: that run the sessions; 0: the event loop does.
        batched: by this library, with a thread for each session; otherwise by hand, one chunk after the other.
    """

    name: str
    sessions: int = 1
    threads: int = 1
    batched: bool = False


def batched(sessions: int = 1) -> Way:
    """Batches of whatever has come while the model was busy, 64 chunks at most.

    Args:
        sessions: how many batches may run at the same time.
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
    """Silero's voice detector without this library."""
    return DetectorByHand(VOICE_MODEL, way.sessions, way.threads)


def voice_service(way: Way) -> si.Stack:
    """Silero's voice detector, which keeps the state of each stream: ``float32[512]`` → ``float32[1]``.

    Its convolutions were folded, so that a batch of 32 takes a quarter of the time of 32 single rows instead of half.
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
    layers.append(si.AdaptiveBatcher(max_batch_size=1, max_queue_size=MAX_STREAMS))
    return show(si.Stack(*layers, si.OnnxBackend(ASSETS / FULL.file, warmup=(1,))))
