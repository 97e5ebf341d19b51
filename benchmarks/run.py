"""`make bench`: every figure beside its baseline, measured in the same run.

python benchmarks/run.py [NAME ...]             names as in the list below; without any, all of them
python benchmarks/run.py NAME [ARGUMENT ...]    one, with its arguments; `NAME --help` lists them
python benchmarks/run.py --record [NAME ...]    also stores the figures, from which the tables of the docs are made

A benchmark is `benchmarks/<family>/bench_<name>.py`. Shared code is in `_lib`, the peers are in `peers`, and real
servers in `servers`.
"""

import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from _lib.figures import RECORD, record
from servers.environments import ENVIRONMENTS

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv-peers"
BENCHMARKS = {
    "batching": "CPU per request through AdaptiveBatcher and Stack, over a minimal batcher",
    "pipeline": "two models one after another under overload, in virtual time: the deadline of the first",
    "frames": "coroutine frames, tasks and CPU per request, from a minimal batcher to the whole stack",
    "planner": "the lookahead planner beside greedy batching, the clairvoyant optimum and the peers, in virtual time",
    "device": "two models on one device: turns over the joint optimum, and beside preemption and independent batchers",
    "noise": "the default policy under noise, outages, classes, shapes and tight deadlines, in virtual time",
    "real_time": "an ONNX model behind ours, the peers and a minimal batcher, in real time",
    "models": "real ONNX models: latency, on time and throughput, over a minimal greedy batcher",
    "real": "real models from the first request on, in fresh processes, cold and warm; greedy and minimal beside it",
    "workers": "callers in a closed loop, of one worker or several, beside a small greedy batcher, in real time",
    "rare_model": "a rare model beside a busy one on a shared device, in real time",
    "start": "the first ten seconds of a fresh server; collections, threads, what is loaded",
    "overload": "the CPU of a rejected request over a served one; how soon a burst of 3× is forgotten",
    "loadtest": "load tests: schedule, CPU per request, stalls, false verdicts, detection, capacity, beside baselines",
    "loadgen": "MLPerf LoadGen as referee: the largest valid rate, over a greedy batcher and over no batches",
    "ragged": "words of any length: ours beside razors-edge-batching-scheduler, on its own mix of lengths",
    "assembly": "putting batches together: reused buffers, padding, masks, over plain NumPy",
    "sessions": "sessions that share weights: memory and throughput, beside a session each",
    "reload": "hot swap of an ONNX model, 50 times under load: lost requests, wrong responses",
    "worker_kills": "worker processes killed under load: responses lost, wrong, failed",
    "idle": "wake-ups of an idle batcher",
    "histogram": "LatencyHistogram: record, bulk, quantile; hdrhistogram beside it",
    "cache": "EdgeCache as a mapping beside the peers' caches: speed, memory, collector, expiry, eviction",
    "cache_wrap": "EdgeCache.wrap: a hit over a bare await, a stampede",
    "http_edge": "HTTP edge: what the helpers cost, repeats through nginx and through the application",
    "disk_tier": "the disk tier: put and get, restart of 1 GB, 200 kills",
    "fold": "batches on models whose convolutions fold_batch folded, over the originals",
    "triton": "TritonBackend beside raw tritonclient: added client time per batch",
    "triton_batching": "our batching in front of a real Triton, beside its dynamic batching",
    "triton_faults": "the fault drill: TritonBackend against a real Triton, 20 rounds of each fault",
    "triton_rollout": "a new version of a model rolled out under load, 50 times: requests lost, wrong responses",
    "triton_shared_memory": "system shared memory with a local Triton, over the payload of gRPC",
    "exporters": "a scrape of 50 services beside prometheus_client's exposition; a p99 through a real Prometheus",
    "dashboard": "the live page in a real browser: CPU of the server, dropped updates, growth; whole JSON beside it",
    "slo": "SLO, its burn signal and RollingHistogram, beside LatencyHistogram and an empty call",
    "perfetto": "Perfetto trace of a decision log with 100,000 requests, beside Perfetto's own classes",
    "telemetry": "all telemetry on: CPU and memory of a request; a rolling p99 against the exact one",
    "alerts": "burn alerts on synthetic months, against the closed form",
    "cost": "cost meter on the real demo models: sums, and what batching saves",
    "breaker": "CircuitBreaker and the peers' breakers: added ns per guarded call",
    "limit": "what ConcurrencyLimit, RetryBudget and Hedge add to a request",
    "router": "FallbackRouter: overload, quality kept, brown-out, added CPU",
    "replicas": "Replicas: one of eight slow, broken, in other zones; beside random, round robin and others",
    "placement": "plans: exact ones by size, greedy and simple rules beside them, repair, prediction over simulation",
    "conformance": "what standard clients find, ours beside Triton, MLServer and KServe; writes a table",
    "serving": "a no-op model over HTTP and gRPC beside bare echoes; copies of a body; 10,000 hostile requests",
    "serving_models": "silero and BlazeFace over HTTP and gRPC, beside Triton and MLServer: p99 at 0.7 of capacity",
    "serving_peers": "a no-op model over HTTP beside BentoML, LitServe, mosec and Ray Serve",
    "ray": "a stack on Ray Serve beside Serve alone: added p50, unequal replicas, a killed node, a large fleet",
    "rtt": "plans on real round-trip times, judged on later ones: promises kept, 5G, alarms; nearest and mean beside",
    "import": "what importing streaminfer costs",
    "state": "recurrent models batched across streams: streams held on time, copies of states over memcpy",
    "sources": "WebRTC through a lossy network, CPU per picture over a bare PyAV loop",
    "voice": "live audio streams per core: one shared session, Pipecat's and LiveKit's own detectors, ours inside them",
    "live_streams": "live audio streams held on time, batched over unbatched",
    "devices": "models by device class: the report beside a direct evaluation; probe on known faults",
    "camera_path": "16 cameras through encoder, network, CDN and model: CPU outside codec and model",
    "streams": "stream sessions: CPU per chunk, age of results under overload, fairness, a minute of churn",
    "cameras": "random cameras and microphones in virtual time: results, ages and fairness, beside a loop by hand",
    "peers": "CPU per request through the peers' batchers, over the same minimal batcher",
}


def peers_python() -> str:
    """Return the interpreter of the peers' environment; make the environment at first use or if requirements change.

    The environment is separate, so that the peers' dependencies conflict with no others.
    """
    python = PEERS / ("Scripts" if os.name == "nt" else "bin") / "python"
    requirements = sorted((HERE / "peers").glob("requirements*.txt"))
    alone = HERE / "peers" / "without-dependencies.txt"
    wanted = "".join(path.read_text() for path in (*requirements, alone))
    stamp = PEERS / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making {PEERS.name} ...", flush=True)
        venv.create(PEERS, with_pip=True, clear=True)
        files = [argument for path in requirements for argument in ("-r", str(path))]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *files], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "-r", alone], check=True)
        stamp.write_text(wanted)
    return str(python)


def environment() -> dict[str, str]:
    """Return this process's environment variables, with the folders from which benchmarks import.

    The checkout is among them, because the peers' environment has no streaminfer.
    """
    folders = [HERE, HERE / "peers", HERE.parent, HERE.parent / "examples"]
    return os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])}


def commands(name: str) -> list[list[str]]:  # noqa: PLR0911 - one per case
    """Return the commands of a benchmark; some of them run in the environment of the peers or of Ray."""
    own = [sys.executable, *(str(path) for path in HERE.glob(f"*/bench_{name}.py"))]
    match name:
        case "planner":
            return [own, [peers_python(), str(HERE / "peers" / "planner.py")]]
        case "breaker":
            return [own, [peers_python(), str(HERE / "peers" / "breakers.py")]]
        case "real_time" | "cache":
            return [[peers_python(), own[1]]]
        case "ragged":
            return [[peers_python(), str(HERE / "peers" / "ragged.py")]]
        case "peers":
            return [[peers_python(), str(HERE / "peers" / "overhead.py")]]
        case "ray":
            return [[str(ENVIRONMENTS["ray"].make().python), own[1]]]
        case _:
            return [own]


def run(name: str, arguments: list[str], reports: Path | None) -> bool:
    """Run a benchmark, append its reports to a file if one is given, and return whether all commands succeeded."""
    variables = environment() | ({} if reports is None else {RECORD: str(reports)})
    codes = [
        subprocess.run([*command, *arguments], env=variables, check=False).returncode for command in commands(name)
    ]
    return not any(codes)


def main() -> int:
    words = sys.argv[1:]
    is_recorded = words[:1] == ["--record"]
    words = words[is_recorded:]
    count = next((number for number, word in enumerate(words) if word not in BENCHMARKS), len(words))
    names, arguments = words[:count] or list(BENCHMARKS), words[count:]
    if arguments and count != 1:
        helps = arguments[0] in {"-h", "--help"}
        print(__doc__, *(f"{name:22}{text}" for name, text in BENCHMARKS.items()), sep="\n")
        if not helps:
            sys.exit(f"expected names of benchmarks, got {arguments[0]!r}")
        return 0
    failed = []
    for number, name in enumerate(names, 1):
        print(f"\n=== [{number}/{len(names)}] {name}: {BENCHMARKS[name]}", flush=True)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            reports = Path(folder) / "reports" if is_recorded else None
            if not run(name, arguments, reports):
                failed.append(name)
            if reports is not None:
                print(f"recorded {record(name, reports)} figures", flush=True)
        print(f"--- {time.perf_counter() - started:.0f} s", flush=True)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
