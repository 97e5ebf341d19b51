"""`PathService`: a service that sends frames of devices through encoder, network and decoder to another service.

*Design.* A frame needs no task: the path calls its `_FrameCall` back when the transfer ends, and the service when a
request completes. At a camera's rate each step finds the processor's caches cold, so few steps matter most.
"""

import asyncio
import functools
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from typing import Any, Self

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.validation import check_count, check_instance, expected
from streaminfer.errors import StreamInferError
from streaminfer.loadtest.arrivals import check_run_s
from streaminfer.loadtest.devices.delivery import captures
from streaminfer.loadtest.path.transfer import DevicePath, Loss, Transfer
from streaminfer.loadtest.sample import Measured, Sample
from streaminfer.loadtest.sending.loops import complete
from streaminfer.loadtest.sending.requests import check_service
from streaminfer.protocols import Clock, Node, adapt, is_service
from streaminfer.request import Request, Response
from streaminfer.stack import Stack
from streaminfer.streams.awaited_call import await_call

__all__ = ["FrameLost", "LostAtEncoder", "LostInNetwork", "PathService", "Score", "Undecodable"]

Score = Callable[[Any, float], float]
Receive = Callable[[Response | None, BaseException | None], None]


class FrameLost(StreamInferError):  # noqa: N818 - the usual term
    """Raised when a frame of a device did not reach the model; the subclass says why."""


class LostAtEncoder(FrameLost):
    """Raised when the encoder was behind: the machine of the load test has too little CPU for the devices."""


class LostInNetwork(FrameLost):
    """Raised when the frame did not arrive, or arrived after a later one."""


class Undecodable(FrameLost):
    """Raised when the frame cannot be decoded without a frame that was lost."""


_LOSSES: dict[Loss, tuple[type[FrameLost], str]] = {
    "encoder": (LostAtEncoder, "the encoders are behind; use fewer devices, or more workers where there are cores"),
    "network": (LostInNetwork, "it did not arrive, or not before a later one"),
    "undecodable": (Undecodable, "it needs one that was lost"),
}


@attrs.frozen(slots=True)
class _DueFrame:
    """One frame of one path, due at an instant of the schedule; its device delivers it ``late_ns`` later."""

    path: DevicePath
    late_ns: int
    skipped: int


class _Function:
    """An async function of the inputs as a service."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    async def call(self, request: Request) -> Response:
        """Await the function."""
        return Response(await self._function(request.inputs))


class PathService(Node):
    """Service for `run` around another service: each request is a frame, captured when the request is due.

    The latency of a response is therefore its age at the viewer. The response is a `Measured` with the stages of the
    path, then ``service``; its values are CPU seconds by stage and the unit's size as ``bytes``. If the service returns
    a `Measured`, its stages, values and labels are added. The labels of the samples are device and network. A frame
    that is lost on its way raises `FrameLost`; a frame that the device itself loses is not a request.

    ::

        async with PathService(stack, paths) as service:
            report = await si.loadtest.run(
                service, arrivals=service.schedule(10.0), inputs=service.samples, duration_s=10.0, slo_s=0.2
            )

    Args:
        service: service that gets the frames that arrive, with the name of the path as ``stream_id``; or an async
            function of the inputs.
        paths: paths of the devices; the service closes them when it is closed.
        score: returns the quality of a response, from 0 to 1, given the outputs and the position of the frame in its
            stream in seconds. The report has the mean by device as ``accuracy``.
        seed: seed of jitter and loss inside the devices.
        clock: returns monotonic nanoseconds; ``None``: the clock of the first path.
    """

    def __init__(
        self,
        service: Any,
        paths: Sequence[DevicePath],
        *,
        score: Score | None = None,
        seed: int = 0,
        clock: Clock | None = None,
    ) -> None:
        check_service(service)
        if not paths:
            raise ValueError(expected("paths", "at least one MediaPath", paths))
        check_instance("score", score, lambda it: it is None or callable(it), "a function or None")
        self._service = service if is_service(service) else _Function(service)
        self._score = score
        self._paths = list(paths)
        self._seed = check_count("seed", seed, at_least=0)
        self._clock = clock or paths[0].clock
        self._samples: list[Sample] = []

    @property
    def samples(self) -> Sequence[Sample]:
        """Inputs of a run, one for each instant of the last :meth:`schedule`."""
        return self._samples

    def schedule(self, duration_s: float) -> NDArray[np.float64]:
        """Return the instants at which the devices capture frames, in seconds, for ``arrivals``.

        The phases of the devices are spread over one period.

        Args:
            duration_s: duration of the run.
        """
        duration_ns = round(check_run_s("duration_s", duration_s) * 1e9)
        merged: list[tuple[int, int, _DueFrame]] = []
        for index, path in enumerate(self._paths):
            profile = path.scene.profile
            phase_ns = round(profile.period_s * 1e9 * index / len(self._paths))
            skipped = 0
            for capture in captures(profile.delivery, profile.period_s, self._seed + index):
                at_ns = phase_ns + capture.captured_ns
                if at_ns >= duration_ns:
                    break
                if capture.delivered_ns is None:
                    skipped += 1
                    continue
                late_ns = capture.delivered_ns - capture.captured_ns
                merged.append((at_ns, index, _DueFrame(path, late_ns, skipped)))
                skipped = 0
        ordered = sorted(merged, key=lambda it: it[:2])
        self._samples = [Sample(due, labels=due.path.labels) for _, _, due in ordered]
        return np.array([at_ns for at_ns, _, _ in ordered]) / 1e9

    async def call(self, request: Request) -> Response:
        """Send a frame over its path, and what arrives to the service.

        Raises:
            FrameLost: the frame did not arrive.
            StreamInferError: an error of the service.
        """
        ended: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        call = self.begin_call(request, functools.partial(complete, ended, operation="frame of a device"))
        try:
            return await ended
        except asyncio.CancelledError:
            call.cancel()
            raise

    @property
    def begin_call(self) -> Callable[[Request, Receive], "_FrameCall"]:
        """Function that begins a request without a task; :meth:`call` uses it too."""
        return self._begin

    def _begin(self, request: Request, receive: Receive) -> "_FrameCall":
        due: _DueFrame = request.inputs
        call = _FrameCall(self, request, due, receive)
        captured_ns = self._clock()
        due.path.begin(captured_ns, captured_ns + due.late_ns, call.receive_transfer, skipped=due.skipped)
        return call

    @functools.cached_property
    def _begin_inner(self) -> Callable[[Request, Receive], Any]:
        """Function that begins a request at the service; looked up at the first frame, when a stack is running."""
        begin_awaited = functools.partial(await_call, self._service, ends_in_time=True, clock=self._clock)
        return adapt(self._service).begin_call or begin_awaited

    async def __aenter__(self) -> Self:
        if isinstance(self._service, Stack) and not self._service.ready:
            raise RuntimeError("start the service first: `async with stack, PathService(stack, paths) as service`")
        return self

    async def __aexit__(self, *_: object) -> None:
        async with AsyncExitStack() as closing:  # closes each path, even if another one fails or closing is cancelled
            for path in reversed(self._paths):
                closing.push_async_callback(path.aclose)


@attrs.define(slots=True, eq=False)
class _FrameCall:
    """Call of one frame: the frame goes through the path, then to the service in one or more successive requests."""

    _path_service: PathService
    _request: Request
    _due: _DueFrame
    _receive: Receive | None
    _call: Any = attrs.field(init=False, default=None)  # in flight at the service
    _outputs: list[Any] = attrs.field(init=False, factory=list)
    _scores: list[float] = attrs.field(init=False, factory=list)
    _measured: list[Measured] = attrs.field(init=False, factory=list)
    _decoded_ns: int = attrs.field(init=False, default=0)
    _transfer: Transfer = attrs.field(init=False)

    def receive_transfer(self, transfer: Transfer | None, error: BaseException | None) -> None:
        """Take the transfer that the path delivered, or its loss, or the error of the path."""
        if self._receive is None:
            return  # cancelled
        if transfer is None:
            self._end(None, error)
        elif transfer.lost is not None:
            kind, reason = _LOSSES[transfer.lost]
            self._end(None, kind(f"frame lost: {reason}"))
        else:
            self._transfer = transfer
            self._decoded_ns = self._path_service._clock()
            self._send()

    def cancel(self) -> None:
        """Cancel the call and its request to the service; a frame still on the path is dropped when it arrives."""
        call = self._call
        self._end(None, asyncio.CancelledError())
        if call is not None:
            call.cancel()

    def _send(self) -> None:
        """Send the next frame of the transfer to the service."""
        number, frames = len(self._outputs), self._transfer.frames
        if number == len(frames):
            self._end(self._response(), None)
            return
        original, frame = self._request, frames[number]
        request = Request(
            frame.inputs,
            deadline_ns=original.deadline_ns,
            priority=original.priority,
            tenant=original.tenant,
            stream_id=self._due.path.name,
        )
        try:
            call = self._path_service._begin_inner(request, self._receive_response)
        except BaseException as error:  # noqa: BLE001 - it is the outcome of this frame
            self._end(None, error)
            return
        if number == len(self._outputs) and self._receive is not None:  # otherwise the request has completed already
            self._call = call

    def _receive_response(self, response: Response | None, error: BaseException | None) -> None:
        """Take the response to a request, or its error."""
        self._call = None
        if self._receive is None:
            return  # cancelled
        if response is None:
            self._end(None, error)
            return
        outputs = response.outputs
        if type(outputs) is Measured:
            self._measured.append(outputs)
            outputs = outputs.outputs
        try:
            self._outputs.append(outputs)
            if self._path_service._score is not None:
                position_s = self._transfer.frames[len(self._outputs) - 1].position_s or 0.0
                self._scores.append(_number_of(self._path_service._score(outputs, position_s)))
        except BaseException as raised:  # noqa: BLE001 - an error of the score is the outcome
            self._end(None, raised)
            return
        self._send()

    def _response(self) -> Response:
        transfer, outputs, scores = self._transfer, self._outputs, self._scores
        stages_s = transfer.stages_s
        labels: dict[str, str] = {}
        if outputs:
            stages_s["service"] = (self._path_service._clock() - self._decoded_ns) / 1e9
        values = {f"{stage}_cpu_s": seconds for stage, seconds in transfer.cpu_s.items()}
        values["bytes"] = float(transfer.size)
        if scores:
            values["accuracy"] = sum(scores) / len(scores)
        for measured in self._measured:  # stages of the frame's requests add up; of each value the last counts
            for stage, seconds in measured.stages_s.items():
                stages_s[stage] = stages_s.get(stage, 0.0) + seconds
            values.update(measured.values)
            labels.update(measured.labels)
        return Response(Measured(outputs, stages_s=stages_s, values=values, labels=labels))

    def _end(self, response: Response | None, error: BaseException | None) -> None:
        receive, self._receive = self._receive, None
        if receive is not None:
            receive(response, error)


def _number_of(score: Any) -> float:
    if np.ndim(score) == 0:
        with suppress(TypeError, ValueError):
            return float(score)
    raise TypeError(expected("score", "a function that returns a number", score))
