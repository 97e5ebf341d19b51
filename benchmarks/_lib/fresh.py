"""Contestants that each run in a new process, like a fresh server; for `real`, `start`, `overload` and `loadgen`.

A process serves one model at given loads and reports the share of the requests on time, window by window; see
`fresh_process.py`. The cache folder of Numba is empty for some runs and filled for others; Python's byte code is
cached for all.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WINDOW_S = 0.5
PATIENCE_S = 180.0
DISTURBED = 0.05
"""Share of the time for which a loop waits for a core; on a quiet machine it waits less."""
CONTESTANTS = ("default", "greedy", "minimal")
BUSY_S, PERIOD_S = 0.033, 0.1
"""Seconds for which a noisy neighbor takes a core in each period, and the seconds of a period."""


@attrs.frozen
class Setting:
    """Settings with which a model is served.

    Attributes:
        model: name of the model in `fresh_process.py`.
        title: name of the model in the tables.
        slo_s: seconds that a request may take from when it was due.
        max_batch_size: the most rows in a batch.
        sizes: batch sizes that are measured for the capacity, which is that of the best one.
    """

    model: str
    title: str
    slo_s: float
    max_batch_size: int
    sizes: tuple[int, ...]


SETTINGS = {
    "silero": Setting("silero", "silero VAD", 0.050, 32, (8, 32)),
    # one image already fills a core, and a batch of 8 takes 20 to 50 ms: larger batches would not fit the SLO
    "blazeface": Setting("blazeface", "BlazeFace full", 0.100, 8, (1, 8)),
}


def run(specification: dict[str, Any], numba_cache: str) -> dict[str, Any]:
    """Run `fresh_process.py` with a specification in a new process, and return its result."""
    paths = os.pathsep.join([str(ROOT), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "NUMBA_CACHE_DIR": numba_cache}
    command = [sys.executable, str(HERE / "fresh_process.py"), json.dumps(specification)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def capacity(setting: Setting, caches: "Caches", seconds: float = 0.7) -> float:
    """Return the responses per second of the minimal batcher in a closed loop, at its best batch size."""
    specification = {"do": "capacity", "model": setting.model, "sizes": setting.sizes, "seconds": seconds}
    return float(run(specification, caches.warm)["capacity"])


def serve(
    setting: Setting,
    contestant: str,
    segments: Sequence[tuple[float, float]],
    *,
    seed: int,
    numba_cache: str,
    collect: bool = False,
) -> dict[str, Any]:
    """Run a contestant once, and return its result.

    Args:
        setting: the model and the settings with which it is served.
        contestant: one of `CONTESTANTS`.
        segments: seconds and requests per second of each segment of the run.
        seed: seed of the arrivals.
        numba_cache: folder of Numba's cache.
        collect: whether a full garbage collection is measured at the end, too.
    """
    specification = {
        "do": "serve",
        "model": setting.model,
        "contestant": contestant,
        "segments": [list(segment) for segment in segments],
        "slo_s": setting.slo_s,
        "max_batch_size": setting.max_batch_size,
        "seed": seed,
        "window_s": WINDOW_S,
        "collect": collect,
    }
    return run(specification, numba_cache)


@attrs.frozen
class Caches:
    """Cache folders of Numba.

    Attributes:
        warm: folder with everything that serving compiles.
        folder: folder in which `empty` makes new ones.
    """

    warm: str
    folder: Path

    def empty(self) -> str:
        """Return a new, empty folder."""
        return tempfile.mkdtemp(dir=self.folder)


@contextlib.contextmanager
def caches() -> Iterator[Caches]:
    """Fill a cache with ``si.warmup()``, as the documentation tells users to; remove all folders at the end."""
    with tempfile.TemporaryDirectory() as name:
        made = Caches(str(Path(name) / "warm"), Path(name))
        command = [sys.executable, "-c", "import streaminfer as si; si.warmup()"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": made.warm}
        subprocess.run(command, env=environment, cwd=ROOT, check=True)
        yield made


@contextlib.contextmanager
def neighbor(wanted: bool) -> Iterator[None]:
    """Run another process that takes a core a third of the time, if it is wanted."""
    if not wanted:
        yield
        return
    busy = subprocess.Popen([sys.executable, str(Path(__file__).resolve()), "neighbor"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def take_a_third() -> None:
    """Take a core a third of the time, until this process is killed or its parent has ended."""
    parent = os.getppid()
    while os.getppid() == parent:
        begun = time.monotonic()
        while time.monotonic() < begun + BUSY_S:
            pass
        time.sleep(PERIOD_S - BUSY_S)


def parser(description: str | None, *, seconds: float, rounds: int) -> argparse.ArgumentParser:
    """Return a parser of the options that these benchmarks share."""
    made = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    made.add_argument("models", nargs="*", choices=[*SETTINGS, []], metavar="MODEL", help=", ".join(SETTINGS))
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--seconds", type=float, default=seconds, help="of each run")
    made.add_argument("--noisy", action="store_true", help="beside a process that takes a core a third of the time")
    return made


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """Return the names in an order that rotates from round to round."""
    at = number % len(names)
    return [*names[at:], *names[:at]]


def shares(found: Sequence[float | None]) -> str:
    """Return the shares of windows as text: .97 for 0.97, 1.0 for 1, -- for a window without requests."""
    return " ".join("--" if share is None else "1.0" if share >= 0.995 else f"{share:.2f}"[1:] for share in found)


def disturbance(runs: Sequence[dict[str, Any]]) -> str:
    """Return a sentence about the time for which the event loop had no core in runs of minimal.

    With minimal, other processes of the machine are the cause.
    """
    share = max(run["waited_s"] / run["wall_s"] for run in runs)
    warning = ": neighbors disturb these figures, measure again" if share > DISTURBED else ""
    return f"minimal's event loop waited for a core up to {share:.0%} of the time{warning}"


def progress(text: str) -> None:
    """Print a line that the next call overwrites, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__" and sys.argv[1:] == ["neighbor"]:
    take_a_third()
