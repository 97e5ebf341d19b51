"""Models by device class: accuracy and CPU in the report beside a direct evaluation; probe on known faults.

The benchmark degrades the recordings of the examples to each device of the library, encodes and decodes them, and runs
BlazeFace on pictures and silero on sound. A response is right if it agrees with the model's response to the original
recording: the faces overlap, or both find speech, or both find none. The direct evaluation encodes, decodes and infers
in a plain loop, without a load test.

Then the benchmark writes recordings with known faults, and `probe` measures the faults.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import onnxruntime
from _lib.figures import Figure
from demo.faces import FULL, find_faces, normalize
from voice_detector import CHUNK, RATE, make_detector

import streaminfer as si
from streaminfer.loadtest.devices import CameraProfile, Delivery, MicrophoneProfile, probe, record, render
from streaminfer.loadtest.devices.delivery import captures
from streaminfer.loadtest.path import MediaPath, NetworkProfile, PathService, Scene, Transfer
from streaminfer.loadtest.path.codec import Codecs
from streaminfer.loadtest.runner import run
from streaminfer.streams.sources.formats import AudioFormat, VideoFormat

ASSETS = Path(__file__).parents[2] / "examples" / "assets"
CLIP, SPEECH = ASSETS / "astronaut_pan.mp4", ASSETS / "librivox_0870.wav"
CAMERAS = ("studio-camera", "video-call", "webcam", "ip-camera", "phone", "phone-old")
MICROPHONES = ("studio-microphone", "headset", "laptop-microphone", "phone-microphone", "telephone")
ORIGINALS: dict[str, Any] = {
    "camera": CameraProfile(name="original", width=640, height=480, rate=24.0, codec="raw"),
    "microphone": MicrophoneProfile(name="original", sample_rate=RATE, codec="pcm", frame_s=CHUNK / RATE),
}
NETWORK = NetworkProfile(name="none")
OVERLAP = 0.5
DIFFERENT = Figure("devices whose accuracy in a report differs from a direct evaluation", form="{:.0f}", at_most=0)
CHANGE = Figure("change of a model's accuracy on a device", over="the original recording", form="{:+.1f} %")
PROBE = Figure("largest error of probe on recordings with a known fault", form="{:.0f} %", at_most=10)


def frames_of(scene: Scene, wanted: Any, prepare: Any) -> Iterator[tuple[Any, float]]:
    """Yield inputs and positions of a scene, encoded and decoded in a plain loop."""
    codecs = Codecs(scene, wanted, prepare)
    for number in range(len(scene)):
        transfer = Transfer(0)
        unit = codecs.encode(transfer, number, number, key=False)
        if unit is not None:
            codecs.decode(transfer, unit.data, unit.pts, discontinuity=False)
            for frame in transfer.frames:
                yield frame.inputs, frame.position_s or 0.0


class Faces:
    """BlazeFace on pictures of 192×192; the truth is the face that it finds in the original recording."""

    kind, source, devices = "camera", CLIP, CAMERAS
    wanted, prepare = VideoFormat(size=(192, 192)), staticmethod(normalize)

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = str(ASSETS / FULL.file)
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.anchors = FULL.anchors()
        self.truth: dict[int, Any] = {}

    def service(self) -> si.Stack:
        def infer(batch: Any) -> list[Any]:
            boxes, scores = self.session.run(None, {"input": batch})
            return [{"boxes": box, "scores": score} for box, score in zip(boxes, scores, strict=True)]

        return si.Stack(si.CpuBackend(infer, executor="inline"))

    def run(self, scene: Scene) -> Any:
        # in virtual time, so that a busy machine loses no picture
        return si.testing.run(lambda loop: measure_report(self, scene, loop.clock))

    def infer(self, inputs: Any, state: Any) -> tuple[Any, Any]:
        boxes, scores = self.session.run(None, {"input": inputs[np.newaxis]})
        return {"boxes": boxes[0], "scores": scores[0]}, state

    def find(self, outputs: Any) -> Any:
        faces = find_faces(outputs["boxes"], outputs["scores"], self.anchors)
        return np.array(faces[0][:4]) if faces else None

    def learn(self, outputs: Any, position_s: float) -> None:
        self.truth[round(position_s * 24)] = self.find(outputs)

    def score(self, outputs: Any, position_s: float) -> float:
        wanted, found = self.truth.get(min(round(position_s * 24), len(self.truth) - 1)), self.find(outputs)
        if wanted is None or found is None:
            return float(wanted is None and found is None)
        inner = np.clip(np.minimum(wanted[2:], found[2:]) - np.maximum(wanted[:2], found[:2]), 0, None).prod()
        union = (wanted[2:] - wanted[:2]).prod() + (found[2:] - found[:2]).prod() - inner
        return float(inner / union >= OVERLAP)


class Voice:
    """silero on chunks of 32 ms; the truth is its decision on the original recording."""

    kind, source, wanted, prepare, devices = "microphone", SPEECH, AudioFormat(), None, MICROPHONES

    def __init__(self) -> None:
        path = str(ASSETS / "silero_vad_16k_op15.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.truth: dict[int, bool] = {}

    def service(self) -> si.Stack:
        return si.Stack(make_detector())

    def run(self, scene: Scene) -> Any:
        return asyncio.run(measure_report(self, scene, time.monotonic_ns))

    def infer(self, inputs: Any, state: Any) -> tuple[Any, Any]:
        recurrent, context = state or (np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32))
        given = {"input": np.concatenate([context, inputs])[np.newaxis], "state": recurrent, "sr": np.array(RATE)}
        probability, recurrent = self.session.run(None, given)
        return probability[0], (recurrent, inputs[-64:])

    def learn(self, outputs: Any, position_s: float) -> None:
        self.truth[round(position_s * RATE / CHUNK)] = bool(np.ravel(outputs)[0] > 0.5)

    def score(self, outputs: Any, position_s: float) -> float:
        wanted = self.truth.get(round(position_s * RATE / CHUNK))
        return float(wanted is None or wanted == bool(np.ravel(outputs)[0] > 0.5))


def evaluate_directly(task: Any, scene: Scene, use: Callable[[Any, float], Any]) -> list[Any]:
    """Run the task's model on a scene in a plain loop; return the result of `use` for each of its outputs."""
    results, state = [], None
    for inputs, position_s in frames_of(scene, task.wanted, task.prepare):
        outputs, state = task.infer(inputs, state)
        results.append(use(outputs, position_s))
    return results


async def measure_report(task: Any, scene: Scene, clock: Callable[[], int]) -> Any:
    """Return the report of a load test that plays a scene once."""
    async with task.service() as stack:
        path = MediaPath(scene, NETWORK, wanted=task.wanted, prepare=task.prepare, clock=clock)
        async with PathService(stack, [path], score=task.score) as over:
            seconds = len(scene) * scene.profile.period_s
            due_s = over.schedule(seconds - scene.profile.period_s / 2)
            return await run(over, arrivals=due_s, inputs=over.samples, duration_s=seconds, slo_s=0.2, drain_s=30.0)


def compare(task: Any, seconds: float) -> None:
    """Print the table of a task by device: accuracy of the report and of the direct evaluation, and CPU."""
    original = Scene(task.source, ORIGINALS[task.kind], seconds=seconds)
    evaluate_directly(task, original, task.learn)
    different = 0
    changes: dict[str, float] = {}
    titles = f"{'device':>20} {'requests':>8} {'report':>8} {'direct':>8} {'change':>8}"
    print(f"{titles}  CPU ms: encode  decode prepare     kB")
    for name in ("original", *task.devices):
        scene = original if name == "original" else Scene(task.source, name, seconds=seconds, seed=1)
        # no faults of delivery, so that both evaluations get the same frames
        scene.profile = attrs.evolve(scene.profile, delivery=Delivery())
        direct = float(np.mean(evaluate_directly(task, scene, task.score)))
        report = task.run(scene)
        means = report.means("device")[scene.profile.name]
        cpu = " ".join(f"{means[f'{stage}_cpu_s'] * 1e3:7.2f}" for stage in ("encode", "decode", "prepare"))
        print(
            f"{name:>20} {report.requests:8} {means['accuracy']:8.4f} {direct:8.4f} {means['accuracy'] - 1:+8.4f}"
            f"         {cpu} {means['bytes'] / 1e3:6.1f}"
        )
        different += round(means["accuracy"] - direct, 4) != 0
        if name != "original":
            changes[name] = 100 * (means["accuracy"] - 1)
    model = "BlazeFace" if task.kind == "camera" else "silero"
    DIFFERENT.report(different, case=model, of=len(changes), note=f"{task.kind}s and the original")
    for name, change in changes.items():
        CHANGE.report(change, case=f"{model}, {name}")


# -- probe -----------------------------------------------------------------------------------------------------------


def delays_s(profile: Any, frames: int, seed: int) -> list[float]:
    """Return the delays, in seconds, of the frames that a device delivers."""
    timing = captures(profile.delivery, profile.period_s, seed)
    shown = (next(timing) for _ in range(frames))
    return [(it.delivered_ns - it.captured_ns) / 1e9 for it in shown if it.delivered_ns is not None]


def check_probe() -> None:
    """Report the errors of `probe` on recordings with known faults."""
    camera = CameraProfile(name="camera", width=640, height=480, rate=24.0, codec="raw")
    microphone = MicrophoneProfile(name="microphone", sample_rate=RATE, codec="pcm")
    print(f"{'fault':>32} {'given':>10} {'measured':>10} {'off':>7}")

    errors: dict[str, list[float]] = {}

    def show(fault: str, given: float, measured: float) -> None:
        print(f"{fault:>32} {given:10.4g} {measured:10.4g} {measured / given - 1:+7.1%}")
        errors.setdefault(fault.partition(",")[0], []).append(100 * abs(measured / given - 1))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording.nut"
        for jitter_s, loss in ((0.002, 0.02), (0.006, 0.05), (0.01, 0.1)):
            for profile, source in ((attrs.evolve(camera, width=64, height=48), CLIP), (microphone, SPEECH)):
                # half as much for packets of sound: jitter of half a period hides losses
                strength = jitter_s * (1.0 if source is CLIP else 0.5)
                delivery = Delivery(jitter_s=strength, loss=loss, loss_run=2.0)
                profile = attrs.evolve(profile, delivery=delivery)  # noqa: PLW2901 - the same profile, with faults
                record(source, profile, path, seed=5)
                measured = probe(path, kind=profile.name)
                frames = 240 if source is CLIP else 355
                truth = delays_s(profile, frames, 5)
                show(f"jitter of a {profile.name}, s", float(np.std(truth)), measured.timing.jitter_s)
                show(f"loss of a {profile.name}", 1 - len(truth) / frames, measured.timing.loss)
        for blur in (1.0, 2.0, 3.0):
            record(CLIP, attrs.evolve(camera, blur=blur), path, seconds=1.0)
            measured = probe(path)
            show("blur, pixels", blur, measured.profile.blur)  # type: ignore[union-attr]
        for noise in (2.9, 5.2, 11.5):
            record(CLIP, attrs.evolve(camera, noise=noise), path, seconds=1.0)
            measured = probe(path)
            show("noise of pictures, levels", noise, measured.profile.noise)  # type: ignore[union-attr]
        quiet = attrs.evolve(microphone, gain_db=-20.0)
        for noise_dbfs in (-45.0, -35.0, -25.0):
            record(SPEECH, attrs.evolve(quiet, noise_dbfs=noise_dbfs), path, seed=3)
            measured = probe(path, kind="microphone")
            show("noise of sound, amplitude", 10 ** (noise_dbfs / 20), 10 ** (measured.measures["noise_db"] / 20))
        # from noise that is louder than the pauses of the recording to noise that its sound hardly exceeds
        soft = attrs.evolve(microphone, gain_db=-10.0)
        level = float(np.sqrt(np.mean(_samples(soft) ** 2)))
        for noise_dbfs in (-45.0, -40.0, -35.0):
            record(SPEECH, attrs.evolve(soft, noise_dbfs=noise_dbfs), path, seed=3)
            measured = probe(path, kind="microphone")
            show(
                "SNR from 11 to 1 dB, amplitudes",
                level / 10 ** (noise_dbfs / 20),
                10 ** (measured.measures["snr_db"] / 20),
            )
        clean = _samples(microphone)
        for clip_dbfs in (-12.0, -18.0, -24.0):
            record(SPEECH, attrs.evolve(microphone, clip_dbfs=clip_dbfs), path)
            measured = probe(path, kind="microphone")
            clipped = float(np.mean(np.abs(clean) >= 10 ** (clip_dbfs / 20)))
            show("clipping, share", clipped, measured.measures["clipped"])
    for fault, found in errors.items():
        PROBE.report(max(found), case=fault, note=f"least {min(found):.0f} %")


def _samples(profile: MicrophoneProfile) -> Any:
    return np.concatenate([it.to_ndarray()[0] for it in render(SPEECH, profile)]) / 32_768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each recording")
    parser.add_argument("--only", choices=("faces", "voice", "probe"))
    arguments = parser.parse_args()
    for name, task in (("faces", Faces), ("voice", Voice)):
        if arguments.only in {None, name}:
            print(f"\n{name}: accuracy is agreement with the model on the recording itself")
            compare(task(), arguments.seconds)
    if arguments.only in {None, "probe"}:
        print("\nprobe on recordings with known faults")
        check_probe()


if __name__ == "__main__":
    main()
