"""Live audio streams per core: one session for all of them, and the detectors of Pipecat and LiveKit.

Every stream has a chunk of 32 ms every 32 ms, at a random phase. The result of a way is the largest number of streams
with at least 99.9 % of results within 64 ms of the chunk's end. Each way runs in a separate process, pinned to one
core, in the environment of its framework; ways take turns for some rounds. The CPU per chunk is that of the whole
process, with senders: if other processes use the core, it is more reliable than the number of streams. The benchmark
also prints the CPU of its sources and consumers alone, for 300 streams.

    python benchmarks/run.py voice [--rounds 3] [--seconds 3] [--core 1]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from _lib.figures import Figure
from _lib.live_audio import CHUNK_S, load_pcm
from servers.environments import ENVIRONMENTS

PEERS = Path(__file__).resolve().parents[1] / "peers"
ASSETS = Path(__file__).resolve().parents[2] / "examples" / "assets"
BARE = {"bare": "silero_vad_16k_op15.onnx", "bare-folded": "silero_vad_16k_folded.onnx"}
LOOPS = {
    "bare": "a loop over batches of 32",
    "bare-folded": "the same with the folded model, as our session has it",
}
WAYS = {
    "session": "one session, batched",
    "unbatched": "the same, unbatched",
    "driver": "the sources and consumers of this benchmark alone",
    "pipecat": "Pipecat's analyzer",
    "pipecat-ours": "ours as its analyzer",
    "livekit-silero": "LiveKit's silero plugin",
    "livekit": "LiveKit's native VAD",
    "livekit-ours": "ours as its VAD",
}
BATCHED = Figure("live audio streams per core, batched in one session", over="the session unbatched", at_least=2.2)
OVER_BARE = Figure(
    "live audio streams per core, beside a bare loop", over="onnxruntime in batches of 32", at_least=0.85
)
OVER_FOLDED = Figure(
    "live audio streams per core, beside a bare loop with folded convolutions", over="onnxruntime in batches of 32"
)
OVER_PIPECAT = Figure("live audio streams per core, beside Pipecat", over="Pipecat's analyzer", at_least=2.5)
IN_PIPECAT = Figure("live audio streams per core, ours as Pipecat's analyzer", over="Pipecat's own", at_least=2.5)
IN_LIVEKIT = Figure("live audio streams per core, ours as LiveKit's VAD", over="LiveKit's native VAD")
RATIOS = [
    (BATCHED, "session", "unbatched"),
    (OVER_BARE, "session", "bare"),
    (OVER_FOLDED, "session", "bare-folded"),
    (OVER_PIPECAT, "session", "pipecat"),
    (IN_PIPECAT, "pipecat-ours", "pipecat"),
    (IN_LIVEKIT, "livekit-ours", "livekit"),
]
DIFFERENT = Figure("rounds whose segments of speech differ from the framework's own", form="{:.0f}", at_most=0)


def run_way(way: str, seconds: float, core: int | None) -> dict[str, Any]:
    """Measure one way in its environment."""
    framework = way.partition("-")[0]
    python = ENVIRONMENTS[framework].make().python if framework in ENVIRONMENTS else sys.executable
    command = [python, PEERS / "voice.py", way, "--seconds", str(seconds)]
    if core is not None:
        command += ["--core", str(core)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way}: {done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run_bare(model: str, seconds: float, core: int | None) -> dict[str, Any]:
    """Measure the bare session in a loop over batches of 32, without streams and deadlines."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(ASSETS / model, options)
    chunks = np.stack(load_pcm()[:32]).astype(np.float32) / np.float32(32768)
    inputs = {
        "input": np.concatenate([np.zeros((32, 64), np.float32), chunks], axis=1),
        "state": np.zeros((2, 32, 128), np.float32),
        "sr": np.array(16_000),
    }
    steps, ends_s, cpu_s = 0, time.monotonic() + seconds, time.process_time()
    while time.monotonic() < ends_s:
        _, inputs["state"] = session.run(None, inputs)
        inputs["input"][:, :64] = inputs["input"][:, -64:]
        steps += 1
    cpu_s = time.process_time() - cpu_s
    os.sched_setaffinity(0, before)
    return {"streams": 32 * steps / seconds * CHUNK_S, "cpu_us": 1e6 * cpu_s / (32 * steps)}


def main() -> None:
    """Measure all ways in turn, and print medians and spread."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="for how long each number of streams is served")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)), help="the one core of each process")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        for loop, model in BARE.items():
            found.setdefault(loop, []).append(run_bare(model, options.seconds, options.core))
        for way in options.ways:
            found.setdefault(way, []).append(run_way(way, options.seconds, options.core))
    print("| way | streams per core | CPU per chunk, µs |\n|---|---|---|")
    for way, rounds in found.items():
        cells = [_spread([one[what] for one in rounds]) for what in ("streams", "cpu_us")]
        if way == "driver":
            cells[0] = "not searched"
        print(f"| {(WAYS | LOOPS)[way]} | {' | '.join(cells)} |")
    print("\nratios within a round:")
    for figure, one, other in RATIOS:
        if one not in found or other not in found:
            continue
        pairs = list(zip(found[one], found[other], strict=True))
        streams = [own["streams"] / max(peer["streams"], 1) for own, peer in pairs]
        cpu = [peer["cpu_us"] / own["cpu_us"] for own, peer in pairs]
        held = statistics.median(own["streams"] for own, _ in pairs)
        figure.report(streams, note=f"{held:.0f} streams; chunks per CPU second {statistics.median(cpu):.2f}×")
    if "driver" in found and "session" in found:
        each = zip(found["session"], found["driver"], found["bare"], strict=True)
        net = [bare["cpu_us"] / (own["cpu_us"] - driver["cpu_us"]) for own, driver, bare in each]
        print(f"session without its sources and consumers over the bare loop: {_spread(net, 2)} in CPU per chunk")
    for name, own, peer in (("Pipecat", "pipecat-ours", "pipecat"), ("LiveKit", "livekit-ours", "livekit")):
        if own in found and peer in found:
            different = sum(one["segments"] != found[peer][0]["segments"] for one in found[own])
            DIFFERENT.report(different, case=name)


def _spread(values: list[float], digits: int = 0) -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


if __name__ == "__main__":
    main()
