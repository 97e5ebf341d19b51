"""The first ten seconds of a fresh server, in half-second windows, and the state of its process afterwards.

    python benchmarks/run.py start [silero] [blazeface] [--load .6] [--noisy] [--rounds 1] [--seconds 10]

Like `bench_real.py`, at one load. Beside the windows, the output has the time of ``start()``, whether Numba was loaded,
the threads, and the time of a full garbage collection over that in a process with numpy and onnxruntime only. With
Numba's objects a collection takes 45 to 75 ms, during which nothing else runs.
"""

import statistics
from typing import Any

from _lib import fresh
from _lib.figures import Figure
from _lib.fresh import (
    SETTINGS,
    WINDOW_S,
    Caches,
    Setting,
    caches,
    capacity,
    in_turn,
    neighbor,
    parser,
    progress,
    serve,
)

SLACK = 0.01
SHORT = Figure(
    "half seconds of a server's first ten seconds with a share on time worse by over 0.01",
    over="the better of greedy and a minimal batcher",
    form="{:.0f}",
    at_most=0,
)
COLLECTION = Figure(
    "full garbage collection after the first ten seconds",
    over="a process that imported numpy and onnxruntime",
    at_most=1.3,
)
RUNS = ("default, warm", "default, cold", "greedy, cold", "minimal")


def measure(
    setting: Setting, caches: Caches, load: float, rounds: int, seconds: float, *, noisy: bool
) -> dict[str, list[float]]:
    """Print the rows of one model; return the time of a full collection over a bare process's, by run and round."""
    found: list[dict[str, dict[str, Any]]] = []
    rates = []
    bare = []
    for number in range(rounds):
        rates.append(capacity(setting, caches))
        runs = {}
        for name in in_turn(RUNS, number):
            progress(f"{setting.title}, round {number + 1} of {rounds}, {name}")
            contestant, _, cache = name.partition(", ")
            runs[name] = serve(
                setting,
                contestant,
                [(seconds, load * rates[-1])],
                seed=number,
                numba_cache=caches.empty() if cache == "cold" else caches.warm,
                collect=True,
            )
            bare.append(fresh.run({"do": "collect"}, caches.warm)["collect_s"])
        found.append(runs)
    progress("")
    print(f"\n{setting.title}: load {load} of {', '.join(f'{rate:,.0f}' for rate in rates)} a second")
    for name in RUNS:
        print(f"  {name:14} " + " | ".join(fresh.shares(runs[name]["windows"]) for runs in found))
    gaps = {
        cache: [
            max(runs["greedy, cold"]["windows"][window], runs["minimal"]["windows"][window]) - share
            for runs in found
            for window, share in enumerate(runs[f"default, {cache}"]["windows"])
            if share is not None
        ]
        for cache in ("warm", "cold")
    }
    for cache, found_gaps in gaps.items():
        short = sum(gap > SLACK for gap in found_gaps)
        print(f"  {cache}: {short} of {len(found_gaps)} windows short of the better of greedy and minimal,", end="")
        print(f" the worst by {max(found_gaps):.3f}")
    print("  " + fresh.disturbance([runs["minimal"] for runs in found]))
    base = statistics.median(bare)
    print(f"  a full collection after importing numpy and onnxruntime: {1e3 * base:.1f} ms")
    for name in RUNS:
        seen = [runs[name] for runs in found]
        took = statistics.median(one["collect_s"] for one in seen)
        print(f"  {name:14} start() {statistics.median(one['start_s'] for one in seen):6.2f} s", end="")
        print(f"   full collection {1e3 * took:5.1f} ms, {took / base:.2f}×", end="")
        print(f"   Numba {'loaded' if any(one['numba'] for one in seen) else 'not loaded'}", end="")
        print(f"   {seen[-1]['os_threads']} threads, of Python: {', '.join(seen[-1]['threads'])}")
    every = [gap for found_gaps in gaps.values() for gap in found_gaps]
    case = f"{setting.title}, {load}× capacity{', noisy neighbor' * noisy}"
    note = f"the worst by {max(0.0, *every):.3f}"
    SHORT.report(sum(gap > SLACK for gap in every), case=case, of=len(every), note=note)
    return {name: [runs[name]["collect_s"] / base for runs in found] for name in RUNS}


def main() -> None:
    options_parser = parser(__doc__, seconds=10.0, rounds=1)
    options_parser.add_argument("--load", type=float, default=0.6, help="share of capacity")
    options = options_parser.parse_args()
    print(
        f"windows of {WINDOW_S} s since start() returned; a new process each" + (", a noisy neighbor" * options.noisy)
    )
    with caches() as made, neighbor(options.noisy):
        models = options.models or SETTINGS
        collections = [
            measure(SETTINGS[name], made, options.load, options.rounds, options.seconds, noisy=options.noisy)
            for name in models
        ]
    ours, greedy, minimal = (
        [ratio for found in collections for name in names for ratio in found[name]]
        for names in (RUNS[:2], RUNS[2:3], RUNS[3:])
    )
    note = f"greedy {statistics.median(greedy):.2f}×, minimal {statistics.median(minimal):.2f}×"
    COLLECTION.report(ours, case=" and ".join(SETTINGS[name].title for name in models), note=note)


if __name__ == "__main__":
    main()
