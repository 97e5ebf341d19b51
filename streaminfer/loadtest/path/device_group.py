"""`DeviceGroup`: devices of one kind on one network, as data; `run_devices`: a load test of a service with devices."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal, get_args

import attrs
import numpy as np

from streaminfer._internal.validation import (
    check_choice,
    check_count,
    check_duration,
    check_instance,
    check_path,
    expected,
    field_check,
)
from streaminfer.loadtest.devices.library import device_profile
from streaminfer.loadtest.devices.profile import CameraProfile, DeviceProfile
from streaminfer.loadtest.path.codec import Prepare
from streaminfer.loadtest.path.codec_thread import CodecThread
from streaminfer.loadtest.path.media_path import Edge, MediaPath
from streaminfer.loadtest.path.network import NetworkProfile, network_profile
from streaminfer.loadtest.path.packets.packet_path import PacketPath
from streaminfer.loadtest.path.path_service import LostAtEncoder, PathService, Score
from streaminfer.loadtest.path.scene import Scene
from streaminfer.loadtest.path.transfer import DevicePath
from streaminfer.loadtest.path.webrtc.webrtc_leg import MIME_TYPES
from streaminfer.loadtest.path.webrtc.webrtc_path import WebRtcPath
from streaminfer.loadtest.report.report import Report
from streaminfer.loadtest.runner import run
from streaminfer.loadtest.sending.loops import clock_of
from streaminfer.loadtest.sending.sender import OnProgress, running
from streaminfer.protocols import Clock
from streaminfer.streams.sources.formats import AudioFormat, PixelFormat, VideoFormat
from streaminfer.testing import VirtualLoop

__all__ = ["DeviceGroup", "Transport", "as_tuple", "run_devices"]

Transport = Literal["simulated", "webrtc", "packets"]


def as_tuple(value: Any) -> Any:
    """Return a list as a tuple, because TOML has lists only; return other values unchanged."""
    return tuple(value) if isinstance(value, list) else value


def _source(value: str | Path) -> Path:
    return check_path("source", value)


@attrs.frozen(kw_only=True)
class DeviceGroup:
    """Devices of one kind on one network. All play the same recording, each from a different position.

    Attributes:
        source: the recording.
        device: profile of the devices, its name, or a file.
        network: profile of the network, its name, or a file.
        count: number of devices.
        size: width and height of the pictures that the model takes; ``None``: the size of the camera's pictures.
        pixel_format: pixel format of the pictures that the model takes.
        sample_rate: sample rate of the sound that the model takes.
        chunk: samples per chunk of this sound.
        seconds: seconds of the recording to use; ``None``: all.
        transport: ``"simulated"``: a `MediaPath`, with a simulated network; ``"webrtc"``: a `WebRtcPath`;
            ``"packets"``: a `PacketPath`, which needs root.
        prepare: makes an input of the model from an array.
    """

    source: Path = attrs.field(converter=_source)
    device: DeviceProfile = attrs.field(converter=device_profile)
    network: NetworkProfile = attrs.field(converter=network_profile)
    count: int = attrs.field(default=1, validator=field_check(check_count))
    size: tuple[int, int] | None = attrs.field(default=None, converter=as_tuple)
    pixel_format: PixelFormat = attrs.field(default="rgb24", validator=field_check(check_choice, get_args(PixelFormat)))
    sample_rate: int = attrs.field(default=16_000, validator=field_check(check_count))
    chunk: int = attrs.field(default=512, validator=field_check(check_count))
    seconds: float | None = attrs.field(
        default=None, validator=field_check(check_duration, positive=True, optional=True)
    )
    transport: Transport = attrs.field(default="simulated", validator=field_check(check_choice, get_args(Transport)))
    prepare: Prepare | None = attrs.field(
        default=None, validator=field_check(check_instance, lambda it: it is None or callable(it), "a function or None")
    )

    def __attrs_post_init__(self) -> None:
        _ = self.wanted  # the formats check size, rate and chunk
        if self.transport == "webrtc" and self.device.codec not in MIME_TYPES:
            raise ValueError(
                expected("transport", f"'webrtc' with a codec of {', '.join(MIME_TYPES)}", self.device.codec)
            )

    @property
    def wanted(self) -> VideoFormat | AudioFormat:
        """Input format of the model."""
        if isinstance(self.device, CameraProfile):
            return VideoFormat(size=self.size, pixel_format=self.pixel_format)
        return AudioFormat(sample_rate=self.sample_rate, chunk=self.chunk)

    def make_paths(
        self,
        *,
        seed: int = 0,
        edge: Edge | None = None,
        threads: Sequence[CodecThread] = (),
        clock: Clock | None = None,
    ) -> list[DevicePath]:
        """Return the paths of the devices; this runs the filters of the recording, so it takes a while.

        Args:
            seed: seed of noise and networks.
            edge: a hop between uplink and decoder; needs a simulated network.
            threads: threads for the codecs, used in turn; a simulated network needs none.
            clock: clock of the paths.

        Raises:
            ValueError: the transport is not simulated, and there is an edge or no thread.
        """
        if self.transport != "simulated" and (edge is not None or not threads):
            raise ValueError(expected("transport", "'simulated' with an edge or in virtual time", self.transport))
        scene = Scene(self.source, self.device, seed=seed, seconds=self.seconds)
        return [
            self._make_path(
                scene,
                threads[number % len(threads)] if threads else None,
                edge,
                clock,
                start=number * len(scene) // self.count,
                seed=seed + number,
            )
            for number in range(self.count)
        ]

    def _make_path(
        self, scene: Scene, thread: CodecThread | None, edge: Edge | None, clock: Clock | None, **options: int
    ) -> DevicePath:
        network, wanted, prepare = self.network, self.wanted, self.prepare
        if self.transport == "webrtc":
            return WebRtcPath(scene, network, prepare=prepare, **attrs.asdict(wanted), **options)
        if self.transport == "packets" and thread is not None:
            return PacketPath(scene, network, wanted=wanted, prepare=prepare, thread=thread, **options)
        return MediaPath(
            scene, network, wanted=wanted, prepare=prepare, edge=edge, thread=thread, clock=clock, **options
        )


async def run_devices(
    service: Any,
    groups: Sequence[DeviceGroup],
    *,
    duration_s: float,
    slo_s: float,
    objective: float = 0.99,
    seed: int = 0,
    score: Score | None = None,
    edge: Edge | None = None,
    workers: int = 1,
    name: str = "",
    progress: OnProgress | None = None,
) -> Report:
    """Test a service with devices: each request is a frame, and its latency is the age of the response at the viewer.

    The report has tails by ``device``, ``network`` and stage, and means of CPU seconds and accuracy by device. Frames
    that an overloaded encoder drops count as not sent. If more than 1 % of the frames are dropped, there is no verdict.

    Args:
        service: as for `run`.
        groups: the devices.
        duration_s: seconds during which the devices capture frames.
        slo_s: age up to which a response is on time.
        objective: share of the frames that must be on time.
        seed: seed of noise, jitter and loss.
        score: as for `PathService`.
        edge: a hop between uplink and decoder, such as a running `CdnEdge`; needs simulated networks.
        workers: number of threads that the codecs of all devices share; a `VirtualLoop` uses none.
        name: name of the run, for the report.
        progress: called every second.

    Raises:
        TypeError: ``groups`` is empty, or not a sequence of `DeviceGroup`.
    """
    expectation = "a sequence of DeviceGroup, at least one"
    check_instance("groups", groups, lambda it: isinstance(it, Sequence) and len(it) > 0, expectation)
    for group in groups:
        check_instance("groups", group, DeviceGroup, expectation)
    loop = asyncio.get_running_loop()
    workers = check_count("workers", workers)
    async with AsyncExitStack() as stack:
        count = 0 if isinstance(loop, VirtualLoop) else workers
        threads = [stack.enter_context(CodecThread(f"codec-{number}")) for number in range(count)]
        paths: list[DevicePath] = []
        for group in groups:  # a seed for each device
            paths += group.make_paths(seed=seed + len(paths), edge=edge, threads=threads, clock=clock_of(loop))
        for path in paths:
            await stack.enter_async_context(path)
        async with running(service) as started, PathService(started, paths, score=score, seed=seed) as path_service:
            due_s = path_service.schedule(duration_s)
            report = await run(
                path_service,
                arrivals=due_s,
                inputs=path_service.samples,
                duration_s=duration_s,
                slo_s=slo_s,
                objective=objective,
                seed=seed,
                name=name,
                progress=progress,
            )
    record = report.record
    not_sent = record.outcome == LostAtEncoder.__name__
    return attrs.evolve(report, record=attrs.evolve(record, late_s=np.where(not_sent, np.nan, record.late_s)))
