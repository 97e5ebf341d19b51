"""`PathService`: a service whose requests are frames of devices, on their way through encoder, network and decoder."""

import heapq
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.validation import check_count, check_duration, check_instance, expected
from streaminfer.errors import StreamInferError
from streaminfer.loadtest.devices.delivery import Capture, captures
from streaminfer.loadtest.path.media_path import MediaPath
from streaminfer.loadtest.path.transfer import Loss
from streaminfer.loadtest.sample import Measured, Sample
from streaminfer.loadtest.sending.requests import check_service
from streaminfer.protocols import Clock, is_service
from streaminfer.request import Request, Response
from streaminfer.stack import Stack

if TYPE_CHECKING:
    from streaminfer.loadtest.path.packets.packet_path import PacketPath
    from streaminfer.loadtest.path.webrtc.webrtc_path import WebRtcPath

__all__ = ["FrameLost", "LostAtEncoder", "LostInNetwork", "PathService", "Score", "Undecodable"]

Score = Callable[[Any, float], float]


class FrameLost(StreamInferError):  # noqa: N818 - as the field says it
    """A frame of a device did not reach the model; the subclass says why."""


class LostAtEncoder(FrameLost):
    """The encoder was behind: the machine of the load test has too little CPU for its devices."""


class LostInNetwork(FrameLost):
    """The frame did not come, or a later one came before it."""


class Undecodable(FrameLost):
    """The frame needs one that was lost."""


_LOSSES: dict[Loss, tuple[type[FrameLost], str]] = {
    "encoder": (LostAtEncoder, "the encoders are behind; use fewer devices, or more workers where there are cores"),
    "network": (LostInNetwork, "it did not arrive, or not before a later one"),
    "undecodable": (Undecodable, "it needs one that was lost"),
}


@attrs.frozen(slots=True)
class _Due:
    """One frame of one path."""

    path: "MediaPath | WebRtcPath | PacketPath"
    capture: Capture
    skipped: int


class PathService:
    """A service around another, for `run`: each request is a frame that a device captures when the request is due.

    The latency of a response is therefore its age at the viewer. Its stages are those of the path, then ``service``;
    its values are CPU seconds by stage; its labels are device and network. A frame that is lost on its way raises
    `FrameLost`; frames that a device loses itself are no requests.

    ::

        async with PathService(stack, paths) as service:
            report = await si.loadtest.run(
                service, arrivals=service.schedule(10.0), inputs=service.samples, duration_s=10.0, slo_s=0.2
            )

    Args:
        service: gets the frames that arrive, with the name of the path as ``stream_id``; or an async function of the
            inputs.
        paths: of the devices. It closes them at its end.
        score: how good an answer is, from 0 to 1, of the outputs and the position of the frame in its stream, in
            seconds; the report has the mean by device as ``accuracy``.
        seed: of jitter and loss inside the devices.
        clock: returns monotonic nanoseconds; ``None``: that of the first path.
    """

    def __init__(
        self,
        service: Any,
        paths: "Sequence[MediaPath | WebRtcPath | PacketPath]",
        *,
        score: Score | None = None,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        check_service(service)
        if not paths:
            raise ValueError(expected("paths", "at least one MediaPath", paths))
        check_instance("score", score, lambda it: it is None or callable(it), "a function or None")
        self._service = service
        self._is_service = is_service(service)
        self._score = score
        self._paths = list(paths)
        self._seed = check_count("seed", seed, at_least=0)
        self._clock = clock or paths[0].clock
        self._due: list[_Due] = []
        self._samples: list[Sample] = []

    @property
    def samples(self) -> Sequence[Sample]:
        """The inputs of a run, one for each instant of the schedule."""
        return self._samples

    def schedule(self, duration_s: float) -> NDArray[np.float64]:
        """Return the instants at which frames are captured, in seconds, for ``arrivals``; devices take turns.

        Args:
            duration_s: of the run.
        """
        duration_ns = round(check_duration("duration_s", duration_s, positive=True) * 1e9)
        merged: list[tuple[int, int, _Due]] = []
        for place, path in enumerate(self._paths):
            profile = path.scene.profile
            phase_ns = round(profile.period_s * 1e9 * place / len(self._paths))
            skipped = 0
            for capture in captures(profile.delivery, profile.period_s, self._seed + place):
                at_ns = phase_ns + capture.captured_ns
                if at_ns >= duration_ns:
                    break
                if capture.delivered_ns is None:
                    skipped += 1
                    continue
                merged.append((at_ns, place, _Due(path, capture, skipped)))
                skipped = 0
        heapq.heapify(merged)
        ordered = [heapq.heappop(merged) for _ in range(len(merged))]
        self._samples = [Sample(due, labels=due.path.labels) for _, _, due in ordered]
        return np.array([at_ns for at_ns, _, _ in ordered]) / 1e9

    async def call(self, request: Request) -> Response:
        """Send a frame on its way, and what arrives to the service.

        Raises:
            FrameLost: it did not arrive.
            StreamInferError: as the service raises.
        """
        due: _Due = request.inputs
        delivered_ns, captured_ns = due.capture.delivered_ns, self._clock()
        late_ns = 0 if delivered_ns is None else delivered_ns - due.capture.captured_ns
        transfer = await due.path.send(captured_ns, captured_ns + late_ns, skipped=due.skipped)
        if transfer.lost is not None:
            kind, reason = _LOSSES[transfer.lost]
            raise kind(f"frame lost: {reason}")
        decoded_ns, outputs, scores = self._clock(), [], []
        for frame in transfer.frames:
            if self._is_service:
                inner = Request(
                    frame.inputs,
                    deadline_ns=request.deadline_ns,
                    priority=request.priority,
                    tenant=request.tenant,
                    stream_id=due.path.name,
                )
                answer = (await self._service.call(inner)).outputs
            else:
                answer = await self._service(frame.inputs)
            outputs.append(answer)
            if self._score is not None:
                scores.append(self._score(answer, frame.position_s or 0.0))
        stages_s = transfer.stages_s
        if outputs:
            stages_s["service"] = (self._clock() - decoded_ns) / 1e9
        values = {f"{stage}_cpu_s": seconds for stage, seconds in transfer.cpu_s.items()}
        values["bytes"] = float(transfer.size)
        if scores:
            values["accuracy"] = sum(scores) / len(scores)
        return Response(Measured(outputs, stages_s=stages_s, values=values))

    async def __aenter__(self) -> Self:
        if isinstance(self._service, Stack) and not self._service.ready:
            raise RuntimeError("start the service first: `async with stack, PathService(stack, paths) as service`")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path in self._paths:
            await path.aclose()
