"""EdgeCache as a mapping beside alternative caches: speed, memory, garbage collection, expiry, eviction.

    python benchmarks/run.py cache        in the peers' environment; without the peers it measures only our caches

Speed: all caches in one process, in turn and in random order, 1,000 operations per round. The benchmark prints the
median over the rounds of each cache's ratio to cachebox's TTL cache within a round. The time includes the loop around
the call. Looked-up keys equal stored keys but are different objects, like keys that are made for each request.
"replace" stores under an existing key, "evict" stores a new key in a full cache, and "new" fills an empty cache.

Memory: growth of the memory that the C library has allocated, neither of resident pages nor of traced allocations. With
``PYTHONMALLOC=malloc`` Python takes all of its memory from the C library. Keys and values exist before the measurement.
A peer with its own allocator (moka) cannot be measured like this, and shows ``nan``.
"""

import argparse
import ctypes
import gc
import importlib.metadata
import math
import os
import random
import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from _lib.cache_traces import compare, source_of_traces
from _lib.figures import Figure
from caches import (  # type: ignore[import-not-found]  # in the folder of the peers, which mypy does not check
    BASELINE,
    OURS,
    PEERS,
    Contender,
)

ALL = {**OURS, **PEERS}
BATCH = 1_000
ROUNDS = 40
ENTRIES = 200_000
VALUE = b"v" * 100
IDLE_TTL_S = 0.5
IDLE_PATIENCE_S = 4.0
SPEED = {
    "hit": Figure("looking up a stored key in `EdgeCache`", over="cachebox's `TTLCache`", at_most=1.1),
    "miss": Figure("looking up an absent key in `EdgeCache`", over="cachebox's `TTLCache`", at_most=1.5),
    "replace": Figure("replacing a value in `EdgeCache`", over="cachebox's `TTLCache`", at_most=0.8),
    "evict": Figure("storing a new key in a full `EdgeCache`", over="cachebox's `TTLCache`", at_most=0.8),
}
MEMORY = Figure("memory of an entry of `EdgeCache` besides its key and value", form="{:.0f} bytes", at_most=130)
COLLECTION = Figure(
    "full garbage collection with 200,000 entries in `EdgeCache`", over="one with an empty cache", at_most=1.5
)
IDLE = Figure("delay until an idle `EdgeCache` frees an expired entry", form="{:.2f} s", at_most=0.25)
GAP = Figure(
    "share of the gap from LRU to the optimal eviction that S3-FIFO closes, mean", form="{:.1f} %", at_least=35
)
WORST_GAP = Figure(
    "share of the gap from LRU to the optimal eviction that S3-FIFO closes, worst trace", form="{:.1f} %", at_least=-5
)


def keys(kind: type, prefix: str, count: int, rng: random.Random) -> list[Any]:
    names = [f"{prefix}{number:015d}" for number in range(count)]
    rng.shuffle(names)
    return names if kind is str else [name.encode() for name in names]


def look_up(contender: Contender, wanted: Sequence[Any]) -> None:
    get = contender.get
    for key in wanted:
        get(key)


def ns_each(operation: Callable[..., None], contender: Contender, *arguments: Any) -> float:
    started = time.perf_counter_ns()
    operation(contender, *arguments)
    return (time.perf_counter_ns() - started) / BATCH


def store(contender: Contender, wanted: Sequence[Any]) -> None:
    contender.store(wanted, VALUE)


def speed(kind: type, entries: int) -> dict[tuple[str, str], float]:
    """Print a table of medians; return the median ratio to the baseline by step and cache."""
    rng = random.Random(0)
    held, wanted = (keys(kind, "k", entries, rng) for _ in range(2))
    absent = keys(kind, "a", entries, rng)
    fresh = keys(kind, "f", 3 * entries, rng)  # a key recurs after at least 2 * entries others: it is evicted
    for key in (*wanted, *absent, *fresh):
        hash(key)
    filled = {name: make(entries) for name, make in ALL.items()}
    full = {name: make(entries) for name, make in ALL.items()}
    for name in ALL:
        filled[name].store(held, VALUE)
        full[name].store(fresh[-entries:], VALUE)
    took: dict[str, dict[str, list[float]]] = {
        step: {name: [] for name in ALL} for step in ("hit", "miss", "replace", "evict", "new")
    }
    gc.collect()
    gc.disable()
    for number in range(ROUNDS):
        at = number * BATCH % entries
        new = fresh[number * BATCH % len(fresh) :][:BATCH]
        for step, of, operation, which in (
            ("hit", filled, look_up, wanted[at : at + BATCH]),
            ("miss", filled, look_up, absent[at : at + BATCH]),
            ("replace", filled, store, wanted[at : at + BATCH]),
            ("evict", full, store, new),
            ("new", None, store, new),
        ):
            for name in rng.sample(list(ALL), len(ALL)):
                contender = ALL[name](entries) if of is None else of[name]
                took[step][name].append(ns_each(operation, contender, which))
    gc.enable()
    print(f"\n{entries:,} {kind.__name__} keys: ns (over {BASELINE})")
    print(f"  {'':20}" + "".join(f"{step:>15}" for step in took))
    ratios = {}
    for name in ALL:
        cells = []
        for step, of in took.items():
            cell = f"{statistics.median(of[name]):.0f}"
            if BASELINE in ALL:
                ratio = statistics.median(own / base for own, base in zip(of[name], of[BASELINE], strict=True))
                ratios[step, name] = ratio
                cell += f" ({ratio:.2f})"
            cells.append(f"{cell:>15}")
        print(f"  {name:20}" + "".join(cells), flush=True)
    return ratios


def speeds() -> None:
    """Report the speed ratios of our caches, each with the kind of keys for which it is slower."""
    for entries in (1_000, 100_000):
        of_kinds = [speed(kind, entries) for kind in (str, bytes)]
        for step, figure in SPEED.items() if BASELINE in ALL else ():
            for name in OURS:
                better, worse = sorted(ratios[step, name] for ratios in of_kinds)
                note = f"{better:.2f}× with the other kind of keys"
                figure.report(worse, case=f"{entries:,} keys, {policy(name)}", note=note)


def policy(name: str) -> str:
    """Return the eviction policy in the name of one of our caches."""
    return name.removeprefix("EdgeCache ")


class Allocated(ctypes.Structure):
    """glibc's ``struct mallinfo2``."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def allocated_bytes() -> int:
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Allocated
    now = library.mallinfo2()
    return int(now.uordblks + now.hblkhd)


def measure_memory(name: str, bounded: bool) -> None:
    rng = random.Random(0)
    held = keys(str, "k", ENTRIES, rng)
    values = [number.to_bytes(8, "big") for number in range(ENTRIES)]
    contender = ALL[name](10) if name else None
    gc.collect()
    before = allocated_bytes()
    if name:
        contender = ALL[name](ENTRIES if bounded else None)
        for key, value in zip(held, values, strict=True):
            contender.store((key,), value)
    gc.collect()
    found = (allocated_bytes() - before) / ENTRIES
    print(found if found > 1 else float("nan"))


def collection_ns() -> float:
    times = []
    for _ in range(25):
        started = time.perf_counter_ns()
        gc.collect()
        times.append(time.perf_counter_ns() - started)
    return statistics.median(times)


def measure_collector(name: str) -> None:
    """Print the duration of a full collection with entries over that with an empty cache; imports are in both."""
    contender = ALL[name](None)
    empty_ns = collection_ns()
    rng = random.Random(0)
    held = keys(str, "k", ENTRIES, rng)
    values = [number.to_bytes(8, "big") for number in range(ENTRIES)]
    for key, value in zip(held, values, strict=True):
        contender.store((key,), value)
    del key, value
    del held, values  # the collector would walk these lists with any cache
    print(collection_ns() / empty_ns)


def _note_now(times: list[float]) -> None:
    times.append(time.monotonic())


def measure_idle(name: str) -> None:
    """Print the longest delay, in seconds after the TTL, until an idle cache frees an expired entry."""

    class Value:
        pass

    contender = ALL[name](1_000, IDLE_TTL_S)
    late = []
    for number in range(3):
        value = Value()
        gone_at: list[float] = []
        weakref.finalize(value, _note_now, gone_at)
        stored_at = time.monotonic()
        contender.store((f"k{number}",), value)
        del value
        while not gone_at and time.monotonic() < stored_at + IDLE_TTL_S + IDLE_PATIENCE_S:
            time.sleep(0.01)
        late.append(gone_at[0] - stored_at - IDLE_TTL_S if gone_at else float("inf"))
        if not gone_at:
            break
    print(max(late))


def alone(what: str, name: str = "", **environment: str) -> float:
    """Return the result of one measurement in a separate process."""
    command = [sys.executable, __file__, "--measure", what, name]
    done = subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def beside(figures: dict[str, float], form: str) -> str:
    """Return a note with the figures of the peers that can be measured."""
    measured = {name: figures[name] for name in PEERS if not math.isnan(figures[name])}
    return ", ".join(f"{name} {form.format(figure)}" for name, figure in measured.items())


def in_processes_of_their_own() -> None:
    print(f"\n{ENTRIES:,} entries, no limit on their number")
    print(f"  {'':20}{'bytes an entry':>16}{'with maxsize':>14}{'collection over empty':>22}{'idle: late by s':>17}")
    sizes, ratios, delays = {}, {}, {}
    for name in ALL:
        size = alone("memory", name, PYTHONMALLOC="malloc")
        bounded = alone("bounded", name, PYTHONMALLOC="malloc")
        ratio = statistics.median(alone("collector", name) for _ in range(3))
        late = alone("idle", name) if "no TTL" not in name else float("nan")
        sizes[name], ratios[name], delays[name] = max(size, bounded), ratio, late
        print(f"  {name:20}{size:16.0f}{bounded:14.0f}{ratio:22.2f}{late:17.2f}", flush=True)
    for name in OURS:
        MEMORY.report(sizes[name], case=policy(name), note=beside(sizes, "{:.0f}"))
        COLLECTION.report(ratios[name], case=policy(name), note=beside(ratios, "{:.1f}×"))
        IDLE.report(delays[name], case=policy(name))


def eviction() -> None:
    """Report the share of the gap from LRU to the optimal eviction that S3-FIFO closes, beside the best peer."""
    shares = compare(ALL)
    best = max(PEERS, key=lambda name: shares[name][0], default=None)
    mean, worst = shares["EdgeCache S3-FIFO"]
    GAP.report(mean, case=source_of_traces(), note=f"{best} {shares[best][0]:.0f} %" if best else "")
    WORST_GAP.report(worst, case=source_of_traces(), note=f"{best} {shares[best][1]:.0f} %" if best else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "NAME"), help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=("speed", "processes", "eviction"))
    options = parser.parse_args()
    if options.measure:
        what, name = options.measure
        match what:
            case "memory" | "bounded":
                measure_memory(name, what == "bounded")
            case "collector":
                measure_collector(name)
            case "idle":
                measure_idle(name)
        return
    packages = {"cachebox": "cachebox", "lru-dict (no TTL)": "lru-dict", "moka": "moka-py", "theine": "theine"}
    packages["cachetools TTL"] = "cachetools"
    packages[BASELINE] = packages.pop("cachebox")
    versions = [f"{of} {importlib.metadata.version(of)}" for name, of in packages.items() if name in PEERS]
    print("peers: " + (", ".join(versions) if PEERS else "not installed here; run it through benchmarks/run.py"))
    for name, part in (("speed", speeds), ("processes", in_processes_of_their_own), ("eviction", eviction)):
        if options.only in (None, name):
            part()


if __name__ == "__main__":
    main()
