"""The whole path of 16 cameras: CPU outside codec and model, age at the viewer, beside a bare loop.

Each camera films 640×480 and encodes H.264; the pictures go over LTE (simulated, by seed), are decoded, scaled and
answered by BlazeFace. CPU is that of the whole process, without what codecs and model used in their threads. The bare
loop encodes, decodes, scales and infers one picture after the other, with no network and no event loop. "Codec" is
encoder and decoder alone: scaling, conversion to RGB and to floats, the simulated network, threads, event loop and
report all count as outside.

With nginx, a second run takes each unit through a real cache, and prints what that costs.
"""

import argparse
import asyncio
import gc
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import attrs
import av
import numpy as np
import onnxruntime

import streaminfer as si
from streaminfer.loadtest.devices import CameraProfile, Delivery
from streaminfer.loadtest.path import CdnEdge, DelayTrace, MediaPath, NetworkProfile, PathService, Scene, WebRtcPath
from streaminfer.loadtest.path.codec import UnitDecoder, UnitEncoder
from streaminfer.loadtest.path.codec_thread import CodecThread
from streaminfer.loadtest.runner import run
from streaminfer.streams.sources.formats import VideoFormat

ASSETS = Path(__file__).parents[2] / "examples" / "assets"
BAR = 0.10
WARMUP = 8
LEAD_MS = 3_000


class FaceModel:
    """BlazeFace in one thread, with the CPU that it used; it takes pictures of bytes, as a camera path delivers them.

    Attributes:
        cpu_s: so far.
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
    """Return pictures as the model wants them: float32 from -1 to 1."""
    wanted: np.ndarray[Any, Any] = np.multiply(pictures, np.float32(1 / 127.5), dtype=np.float32)
    wanted -= 1
    return wanted


def measure_bare(scene: Scene, model: FaceModel, pictures: int) -> tuple[float, float]:
    """Return the CPU per picture of a bare loop, and its share outside codec and model."""
    encoder = UnitEncoder(av, scene)
    decoder = UnitDecoder(av, scene, encoder, VideoFormat(size=(model.size, model.size)), None)
    model.cpu_s, codec_s = 0.0, 0.0
    gc.collect()
    cpu_s = time.process_time()
    for number in range(pictures):
        unit = encoder.encode(number, number, key=False)
        assert unit is not None
        decoded = decoder.decode(unit.data, unit.pts, 0, discontinuity=False)
        codec_s += unit.cpu_s + decoded.decode_cpu_s
        model(decoded.frames[0].inputs[np.newaxis])
    cpu_s = time.process_time() - cpu_s
    return cpu_s / pictures, 1 - (codec_s + model.cpu_s) / cpu_s


async def measure_path(
    scene: Scene,
    model: FaceModel,
    cameras: int,
    seconds: float,
    *,
    network: str | NetworkProfile = "lte",
    edge: CdnEdge | None = None,
) -> tuple[Any, float, float, float]:
    """Return the report, the CPU per picture, its share outside codec and model, and that of scaling in it."""
    backend = si.CpuBackend(model, executor="thread", workers=1, copy_outputs=False)
    wanted = VideoFormat(size=(model.size, model.size))
    with CodecThread() as thread:
        paths = [
            MediaPath(scene, network, wanted=wanted, edge=edge, thread=thread, start=15 * n, seed=n)
            for n in range(cameras)
        ]
        async with si.Stack(backend) as stack, PathService(stack, paths) as over:
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
    """Return the recorded drive whose 99th percentile is the longest."""
    with np.load(path) as file:
        sent_ms, rtt_ms, offsets = file["send_ms"], file["rtt_ms"], file["offsets"]
    drives = [slice(first, last) for first, last in itertools.pairwise(offsets.tolist())]
    drive = max(drives, key=lambda drive: float(np.nanquantile(rtt_ms[drive], 0.99)))
    # from shortly before its longest outage
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
    parser.add_argument("--rounds", type=int, default=5)
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
    measure_bare(scene, model, WARMUP)
    asyncio.run(measure_path(scene, model, 2, 1.0))  # imports, and the memory of codecs
    shares, scalings, costs, bare_shares, bare_costs = [], [], [], [], []
    report: Any = None
    for _ in range(arguments.rounds):
        bare_cost, bare_share = measure_bare(scene, model, round(arguments.cameras * arguments.rate))
        report, cost, share, scaling = asyncio.run(measure_path(scene, model, arguments.cameras, arguments.seconds))
        shares.append(share)
        scalings.append(scaling)
        costs.append(cost)
        bare_shares.append(bare_share)
        bare_costs.append(bare_cost)
    print(f"{arguments.cameras} cameras, 640×480, {arguments.rate:g} pictures/s each, BlazeFace {arguments.model}")
    for name, column, cost_column in (("bare loop", bare_shares, bare_costs), ("whole path", shares, costs)):
        print(
            f"{name:>10}: CPU per picture {statistics.median(cost_column) * 1e3:.2f} ms, outside codec and model "
            f"{statistics.median(column):.1%} ({min(column):.1%} to {max(column):.1%})"
        )
    print(f"            of which scaling and conversion to colors {statistics.median(scalings):.1%}")
    print(f"bar: at most {BAR:.0%} outside codec and model")
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


async def measure_edge(scene: Scene, model: FaceModel, arguments: argparse.Namespace) -> None:
    """Print what a hop through nginx adds, with two consumers of each picture."""
    async with CdnEdge(consumers=2) as edge:
        before_s = edge.cpu_s()
        report, cost, _, _ = await measure_path(scene, model, arguments.cameras, arguments.seconds, edge=edge)
        nginx_s = (edge.cpu_s() - before_s) / report.requests
    print(f"through nginx, 2 consumers: CPU per picture {cost * 1e3:.2f} ms here, {nginx_s * 1e3:.2f} ms in nginx")
    print(f"  {edge.hits} from the cache, {edge.misses} from the origin")
    print(show(report))


if __name__ == "__main__":
    main()
