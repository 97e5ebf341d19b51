"""The whole path of 16 cameras: CPU outside codec and model, and age at the viewer, beside a bare loop.

Each camera films 640×480 and encodes H.264; the pictures cross a simulated LTE network (seeded), are decoded and
scaled, and BlazeFace runs on them. The CPU outside codec and model is that of the whole process minus the time of
codecs and model in their threads. "Codec" means only encoder and decoder: scaling, conversion to RGB and to floats, the
simulated network, threads, event loop and report all count as outside.

The baselines are three programs written by hand, with the same codecs and the same model:

* bare loop: it encodes, decodes, scales and infers one picture after the other, as fast as it can;
* two threads: they do the same at the rate of the cameras, without event loop and measurements; one sleeps until the
  next picture is due, the other until that picture would have arrived;
* asyncio: a task per picture, an executor of one thread for the codecs and another for the model.

In the last run of a round, batches wait for up to 20 ms: rows share the cost of a batch, and responses are older.

If nginx is installed, a further run sends each unit through a real cache, and prints the cost.
"""

import argparse
import asyncio
import gc
import itertools
import queue
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnxruntime
from _lib.figures import Figure

import streaminfer as si
from streaminfer.loadtest.devices import CameraProfile, Delivery
from streaminfer.loadtest.path import (
    CdnEdge,
    DelayTrace,
    MediaPath,
    NetworkProfile,
    PathService,
    Scene,
    Transfer,
    WebRtcPath,
)
from streaminfer.loadtest.path.codec import Codecs
from streaminfer.loadtest.path.codec_thread import CodecThread
from streaminfer.loadtest.runner import run
from streaminfer.streams.sources.formats import VideoFormat

ASSETS = Path(__file__).parents[2] / "examples" / "assets"
OUTSIDE = Figure("CPU of live cameras outside codec and model", form="{:.1f} %", at_most=10.0)
BY_HAND_OUTSIDE = Figure("CPU of live cameras outside codec and model, written by hand", form="{:.1f} %")
WARMUP = 8
LEAD_MS = 3_000
BY_HAND_DELAY_S = 0.05
"""Delay from the encoder to the decoder, about that of the path's network."""
MAX_BATCH_SIZE, MAX_QUEUE_DELAY_S = 8, 0.02
PATH, BATCHED = "whole path", "in batches"


class FaceModel:
    """BlazeFace in one thread, for pictures of bytes as a camera path delivers them; counts its CPU.

    Attributes:
        cpu_s: CPU seconds that the model has used.
        size: width and height of its input.
    """

    def __init__(self, name: str, size: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.size = size
        self.cpu_s = 0.0
        self._session = onnxruntime.InferenceSession(str(ASSETS / name), options, providers=["CPUExecutionProvider"])

    def __call__(self, batch: np.ndarray[Any, Any]) -> list[Any]:
        wanted = prepare(batch)
        started_s = time.thread_time()
        boxes, scores = self._session.run(None, {"input": wanted})
        self.cpu_s += time.thread_time() - started_s
        return list(zip(boxes, scores, strict=True))


def prepare(pictures: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return pictures as inputs of the model: float32 from -1 to 1."""
    wanted: np.ndarray[Any, Any] = np.multiply(pictures, np.float32(1 / 127.5), dtype=np.float32)
    wanted -= 1
    return wanted


class Camera:
    """Encoder and decoder of one camera for the programs written by hand; counts their CPU.

    Attributes:
        cpu_s: CPU seconds that encoder and decoder have used.
        period_s: seconds from one picture to the next.
    """

    def __init__(self, scene: Scene, size: int) -> None:
        self._codecs = Codecs(scene, VideoFormat(size=(size, size)), None)
        self.cpu_s, self.period_s = 0.0, scene.profile.period_s

    def carry(self, place: int, number: int) -> np.ndarray[Any, Any]:
        """Encode and decode a picture of the scene; return it as the model receives it."""
        transfer = Transfer(0)
        unit = self._codecs.encode(transfer, place, number, key=False)
        assert unit is not None
        self._codecs.decode(transfer, unit.data, unit.pts, discontinuity=False)
        self.cpu_s += transfer.cpu_s["encode"] + transfer.cpu_s["decode"]
        return transfer.frames[0].inputs[np.newaxis]  # type: ignore[no-any-return]


def measure_bare(model: FaceModel, cameras: list[Camera], pictures: int) -> None:
    """Encode, decode and infer one picture after the other; one camera is enough."""
    for number in range(pictures):
        model(cameras[0].carry(number, number))


def measure_threads(model: FaceModel, cameras: list[Camera], pictures: int) -> None:
    """Run a thread for the codecs and another for the model, at the rate of the cameras."""
    arrived: queue.SimpleQueue[tuple[float, np.ndarray[Any, Any]] | None] = queue.SimpleQueue()
    start_s = time.monotonic()

    def code() -> None:
        for turn in range(pictures):
            number, camera = divmod(turn, len(cameras))
            time.sleep(max(0.0, start_s + turn * cameras[0].period_s / len(cameras) - time.monotonic()))
            picture = cameras[camera].carry(15 * camera + number, number)
            arrived.put((time.monotonic() + BY_HAND_DELAY_S, picture))
        arrived.put(None)

    def infer() -> None:
        while (item := arrived.get()) is not None:
            time.sleep(max(0.0, item[0] - time.monotonic()))
            model(item[1])

    threads = [threading.Thread(target=code), threading.Thread(target=infer)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure_asyncio(model: FaceModel, cameras: list[Camera], pictures: int) -> None:
    """Run a task per picture, with an executor of one thread for the codecs and another for the model."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()

        async def answer(camera: int, number: int) -> None:
            picture = await loop.run_in_executor(codecs, cameras[camera].carry, 15 * camera + number, number)
            await asyncio.sleep(BY_HAND_DELAY_S)
            await loop.run_in_executor(models, model, picture)

        async with asyncio.TaskGroup() as tasks:
            for turn in range(pictures):
                number, camera = divmod(turn, len(cameras))
                await asyncio.sleep(start_s + turn * cameras[0].period_s / len(cameras) - loop.time())
                tasks.create_task(answer(camera, number))

    with ThreadPoolExecutor(1) as codecs, ThreadPoolExecutor(1) as models:
        asyncio.run(main())


BY_HAND = {"bare loop": measure_bare, "two threads": measure_threads, "asyncio": measure_asyncio}


def measure_by_hand(name: str, scene: Scene, model: FaceModel, cameras: int, pictures: int) -> tuple[float, float]:
    """Return the CPU seconds per picture of a program written by hand, and their share outside codec and model."""
    codecs = [Camera(scene, model.size) for _ in range(cameras)]
    gc.collect()
    model.cpu_s, cpu_s = 0.0, time.process_time()
    BY_HAND[name](model, codecs, pictures)
    cpu_s = time.process_time() - cpu_s
    return cpu_s / pictures, 1 - (sum(camera.cpu_s for camera in codecs) + model.cpu_s) / cpu_s


async def measure_path(
    scene: Scene,
    model: FaceModel,
    cameras: int,
    seconds: float,
    *,
    network: str | NetworkProfile = "lte",
    edge: CdnEdge | None = None,
    batched: bool = False,
) -> tuple[Any, float, float, float]:
    """Return the report, the CPU seconds per picture, their share outside codec and model, and that of scaling."""
    backend = si.CpuBackend(model, executor="thread", workers=1, copy_outputs=False)
    batcher = si.AdaptiveBatcher(max_batch_size=MAX_BATCH_SIZE, policy="greedy", max_queue_delay_s=MAX_QUEUE_DELAY_S)
    wanted = VideoFormat(size=(model.size, model.size))
    with CodecThread() as thread:
        paths = [
            MediaPath(scene, network, wanted=wanted, edge=edge, thread=thread, start=15 * n, seed=n)
            for n in range(cameras)
        ]
        async with si.Stack(*[batcher] * batched, backend) as stack, PathService(stack, paths) as over:
            due_s = over.schedule(seconds)
            gc.collect()
            model.cpu_s, cpu_s = 0.0, time.process_time()
            report = await run(over, arrivals=due_s, inputs=over.samples, duration_s=seconds, slo_s=0.2)
            cpu_s = time.process_time() - cpu_s
    codec_s = sum(path.cpu_s[stage] for path in paths for stage in ("encode", "decode"))
    prepare_s = sum(path.cpu_s["prepare"] for path in paths)
    return report, cpu_s / report.requests, 1 - (codec_s + model.cpu_s) / cpu_s, prepare_s / cpu_s


async def measure_webrtc(scene: Scene, model: FaceModel, seconds: float, network: NetworkProfile) -> Any:
    """Return the report of one camera over WebRTC."""
    backend = si.CpuBackend(model, executor="thread", workers=1)
    path = WebRtcPath(scene, network, size=(model.size, model.size))
    async with path, si.Stack(backend) as stack, PathService(stack, [path]) as over:
        due_s = over.schedule(seconds)
        return await run(over, arrivals=due_s, inputs=over.samples, duration_s=seconds, slo_s=0.2)


def worst_drive(path: Path) -> DelayTrace:
    """Return the recorded drive with the highest p99, from shortly before its longest outage."""
    with np.load(path) as file:
        sent_ms, rtt_ms, offsets = file["send_ms"], file["rtt_ms"], file["offsets"]
    drives = [slice(first, last) for first, last in itertools.pairwise(offsets.tolist())]
    drive = max(drives, key=lambda drive: float(np.nanquantile(rtt_ms[drive], 0.99)))
    # the longest round trip marks the longest outage
    worst = drive.start + int(np.nanargmax(rtt_ms[drive]))
    cut = slice(
        max(drive.start, int(np.searchsorted(sent_ms[drive], sent_ms[worst] - LEAD_MS)) + drive.start), drive.stop
    )
    return DelayTrace.from_round_trips(sent_ms[cut], rtt_ms[cut])


def show(report: Any) -> str:
    """Return outcomes, ages and stages in one line each."""
    lines = [f"  outcomes {report.outcomes}, schedule kept: {report.kept_schedule}"]
    for tail in (report.total, *report.by_stage()):
        p50, p99 = (tail.quantiles_s[name] * 1e3 for name in ("p50", "p99"))
        name = "age at the viewer" if tail.name == report.total.name else tail.name
        lines.append(f"  {name:>18}: p50 {p50:7.1f} ms, p99 {p99:7.1f}")
    for device, means in report.means("device").items():
        stages = {name[:-6]: value for name, value in means.items() if name.endswith("_cpu_s")}
        parts = ", ".join(f"{name} {value * 1e3:.2f} ms" for name, value in stages.items())
        if parts:
            lines.append(f"  CPU per picture of {device!r}: {parts}; {means['bytes'] / 1e3:.1f} kB")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cameras", type=int, default=16)
    parser.add_argument("--rate", type=float, default=10.0, help="pictures per second of a camera")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=("full", "front"), default="full")
    parser.add_argument("--trace", type=Path, help="cicv5g_first_runs.npz: also replay a drive with outages")
    arguments = parser.parse_args()
    model = FaceModel(f"blaze_{arguments.model}.onnx", {"full": 192, "front": 128}[arguments.model])
    profile = CameraProfile(
        name="camera",
        width=640,
        height=480,
        rate=arguments.rate,
        noise=3.0,
        blur=0.8,
        bitrate=800_000,
        delivery=Delivery(jitter_s=0.004),
    )
    scene = Scene(ASSETS / "astronaut_pan.mp4", profile)
    measure_by_hand("bare loop", scene, model, 1, WARMUP)
    asyncio.run(measure_path(scene, model, 2, 1.0))  # warm-up: imports, and the memory of the codecs
    shares: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    scalings: list[float] = []
    reports: dict[str, Any] = {}

    def note(name: str, cost: float, share: float) -> None:
        costs.setdefault(name, []).append(cost)
        shares.setdefault(name, []).append(share)

    for _ in range(arguments.rounds):
        for name in BY_HAND:
            pictures = round(arguments.cameras * arguments.rate * (1 if name == "bare loop" else arguments.seconds))
            note(name, *measure_by_hand(name, scene, model, arguments.cameras, pictures))
        for name in (PATH, BATCHED):
            measured = measure_path(scene, model, arguments.cameras, arguments.seconds, batched=name == BATCHED)
            reports[name], cost, share, scaling = asyncio.run(measured)
            note(name, cost, share)
            if name == PATH:
                scalings.append(scaling)
    print(f"{arguments.cameras} cameras, 640×480, {arguments.rate:g} pictures/s each, BlazeFace {arguments.model}")
    for name, column in shares.items():
        ages_ms = [reports[name].total.quantiles_s[key] * 1e3 for key in ("p50", "p99")] if name in reports else []
        print(
            f"{name:>12}: CPU per picture {statistics.median(costs[name]) * 1e3:.2f} ms, outside codec and model "
            f"{statistics.median(column):.1%} ({min(column):.1%} to {max(column):.1%})"
            + (f", age p50 {ages_ms[0]:.0f} ms, p99 {ages_ms[1]:.0f}" if ages_ms else "")
        )
    print(f"the whole path: scaling and conversion to colors {statistics.median(scalings):.1%} of its CPU")
    report = reports[PATH]
    report_shares(arguments.cameras, shares, reports)
    if dropped := report.outcomes.get("LostAtEncoder", 0):
        print(f"the machine was too busy: encoders dropped {dropped} of {report.requests} pictures; the share has them")
    print(show(report))
    if arguments.trace is not None:
        network = NetworkProfile(name="car", rate=20_000_000, trace=worst_drive(arguments.trace))
        report, _, _, _ = asyncio.run(measure_path(scene, model, 2, 3 * arguments.seconds, network=network))
        print(f"2 cameras over the uplink of a car with outages, {3 * arguments.seconds:g} s\n{show(report)}")
        scene = Scene(ASSETS / "astronaut_pan.mp4", attrs.evolve(profile, codec="vp8"))
        report = asyncio.run(measure_webrtc(scene, model, 3 * arguments.seconds, network))
        print(f"1 camera over WebRTC and the same uplink, VP8\n{show(report)}")
    try:
        asyncio.run(measure_edge(scene, model, arguments))
    except FileNotFoundError as error:
        print(f"without the CDN hop: {error}")


def report_shares(cameras: int, shares: dict[str, list[float]], reports: dict[str, Any]) -> None:
    """Report the CPU outside codec and model of the path, and of programs written by hand at the cameras' rate."""
    percent = {name: [100 * share for share in column] for name, column in shares.items()}
    alone, batched = (reports[name].total.quantiles_s["p50"] * 1e3 for name in (PATH, BATCHED))
    OUTSIDE.report(percent[PATH], case=f"{cameras} cameras, each picture alone")
    OUTSIDE.report(
        percent[BATCHED],
        case=f"{cameras} cameras, batches that wait for 20 ms",
        note=f"responses {batched - alone:.0f} ms older",
    )
    for name in ("two threads", "asyncio"):
        BY_HAND_OUTSIDE.report(percent[name], case=f"{cameras} cameras, {name}")


async def measure_edge(scene: Scene, model: FaceModel, arguments: argparse.Namespace) -> None:
    """Print the cost of the path with a hop through nginx and two consumers of each picture."""
    async with CdnEdge(consumers=2) as edge:
        before_s = edge.cpu_s()
        report, cost, _, _ = await measure_path(scene, model, arguments.cameras, arguments.seconds, edge=edge)
        nginx_s = (edge.cpu_s() - before_s) / report.requests
    print(f"through nginx, 2 consumers: CPU per picture {cost * 1e3:.2f} ms here, {nginx_s * 1e3:.2f} ms in nginx")
    print(f"  {edge.hits} from the cache, {edge.misses} from the origin")
    print(show(report))


if __name__ == "__main__":
    main()
