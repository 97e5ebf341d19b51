"""`make bench`: every figure beside its baseline, measured in the same run; each benchmark also runs alone.

python benchmarks/run.py [NAME ...]     names as in the list below; without any, all of them
"""

import argparse
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv-peers"
BENCHMARKS = {
    "batching": "CPU per request through AdaptiveBatcher and Stack, over a minimal batcher",
    "planner": "the lookahead planner beside greedy batching and the clairvoyant optimum, in virtual time",
    "idle": "wake-ups of an idle batcher",
    "histogram": "LatencyHistogram: record, bulk, quantile; hdrhistogram beside it",
    "import": "what importing streaminfer costs",
    "live_streams": "live audio streams held on time, batched over unbatched",
    "peers": "CPU per request through the peers' batchers, over the same minimal batcher",
}


def peers_python() -> str:
    """The peers' environment, made at first use: their dependencies conflict with nobody's there."""
    python = PEERS / ("Scripts" if os.name == "nt" else "bin") / "python"
    requirements = HERE / "peers" / "requirements.txt"
    stamp = PEERS / "requirements.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        print(f"making {PEERS.name} ...", flush=True)
        venv.create(PEERS, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        stamp.write_text(requirements.read_text())
    return str(python)


def command(name: str) -> list[str]:
    if name == "peers":
        return [peers_python(), str(HERE / "peers" / "overhead.py")]
    return [sys.executable, str(HERE / f"bench_{name}.py")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], metavar="NAME", help=", ".join(BENCHMARKS))
    names = parser.parse_args().names or list(BENCHMARKS)
    failed = []
    for number, name in enumerate(names, 1):
        print(f"\n=== [{number}/{len(names)}] {name}: {BENCHMARKS[name]}", flush=True)
        started = time.perf_counter()
        if subprocess.run(command(name), check=False).returncode:
            failed.append(name)
        print(f"--- {time.perf_counter() - started:.0f} s", flush=True)
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
