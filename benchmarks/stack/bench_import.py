"""Import time of streaminfer over that of modules that any such program imports, in the same run.

python benchmarks/run.py import [--rounds 15]
"""

import argparse
import os
import statistics
import subprocess
import sys

from _lib.figures import Figure

FLOOR = "import numpy, attr, asyncio"
NAMES = ("Stack", "AdaptiveBatcher", "LatencyHistogram", "Telemetry")
OURS = "import streaminfer as si; " + "; ".join(f"si.{name}" for name in NAMES)
HEAVY = ("numba", "onnxruntime", "matplotlib")
TIMED = """
import time, sys
started = time.perf_counter()
{statement}
print(time.perf_counter() - started, *(name for name in {heavy!r} if name in sys.modules))
"""
COST = Figure("importing streaminfer and touching its names", over="importing numpy, attr and asyncio", at_most=1.15)
HEAVY_MODULES = Figure("heavy modules that this loads", form="{:.0f}", at_most=0)

# Python may write bytecode, as in any installation
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def measure(statement: str) -> tuple[float, list[str]]:
    code = TIMED.format(statement=statement, heavy=HEAVY)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    seconds, *heavy = run.stdout.split()
    return float(seconds), heavy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    floors, ours, heavy = [], [], set()
    measure(OURS)  # writes the bytecode
    for _ in range(rounds):
        floors.append(measure(FLOOR)[0])
        seconds, loaded = measure(OURS)
        ours.append(seconds)
        heavy.update(loaded)
    print(f"{FLOOR:60} {statistics.median(floors) * 1e3:7.1f} ms")
    print(f"import streaminfer, touch {', '.join(NAMES):34} {statistics.median(ours) * 1e3:7.1f} ms")
    COST.report([own / floor for own, floor in zip(ours, floors, strict=True)])
    HEAVY_MODULES.report(len(heavy), note=", ".join(sorted(heavy)))


if __name__ == "__main__":
    main()
