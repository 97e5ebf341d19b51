"""Real models in real time, from the first request on: the default policy beside greedy and a minimal batcher.

    python benchmarks/run.py real [silero] [blazeface] [--loads .3 .6 .8 1.1] [--noisy] [--rounds 2] [--seconds 4]

Each run is a new process, like a fresh server; *cold* runs have an empty Numba cache. Callers are an open loop of
Poisson arrivals, at shares of the closed-loop throughput of the minimal batcher, measured again before each round.
*minimal* is 25 lines: a list, a future per request and one thread around onnxruntime alone. Only the SLO and the
largest batch are set: silero has 50 ms and 32 rows; BlazeFace, which loses from batching, has 100 ms and 8 rows.

The output is the share on time, from the instant at which a request was due, of each half second since the return of
``start()``, and of the whole run. A window is *short* if the default policy is more than 0.01 below the better of
greedy and minimal in the same window of the same round, on the same arrivals.
"""

import statistics
from typing import Any

import attrs
from _lib.figures import Figure
from _lib.fresh import (
    CONTESTANTS,
    SETTINGS,
    Caches,
    Setting,
    caches,
    capacity,
    disturbance,
    in_turn,
    neighbor,
    parser,
    progress,
    serve,
)
from _lib.fresh import shares as as_text

LOADS = (0.3, 0.6, 0.8, 1.1)
SLACK = 0.01
OVERLOAD = Figure("share on time of a fresh server above capacity", form="{:.2f}", at_least=0.86)
SHORT = Figure(
    "half seconds of a fresh server with a share on time worse by over 0.01",
    over="the better of greedy and a minimal batcher",
    form="{:.0f}",
    at_most=0,
)
CACHES = ("warm", "cold")
RUNS = ("default, warm", "default, cold", "greedy, warm", "greedy, cold", "minimal")
Runs = dict[str, dict[str, Any]]


@attrs.frozen
class Comparison:
    """Windows of one round: the default policy beside the better of the others.

    Attributes:
        short: number of windows in which the default falls short by more than the slack.
        of: number of windows with requests.
        worst: the largest shortfall in a window, before the slack; negative if the default is always better.
        whole: the shortfall over the whole run.
    """

    short: int
    of: int
    worst: float
    whole: float


def compare(runs: Runs, cache: str) -> Comparison:
    """Compare the default policy under one cache with greedy under the same cache and with minimal."""
    mine = runs[f"default, {cache}"]
    others = [runs[f"greedy, {cache}"], runs["minimal"]]
    gaps = []
    for window, share in enumerate(mine["windows"]):
        beside = [other["windows"][window] for other in others]
        if share is not None:  # arrivals are the same, so a window is empty for all or for none
            gaps.append(max(beside) - share)
    whole = max(other["on_time"] for other in others) - mine["on_time"]
    return Comparison(sum(gap > SLACK for gap in gaps), len(gaps), max(gaps), whole)


def measure(setting: Setting, caches: Caches, loads: list[float], rounds: int, seconds: float, *, noisy: bool) -> None:
    found: dict[float, list[Runs]] = {load: [] for load in loads}
    capacities = []
    for number in range(rounds):
        capacities.append(capacity(setting, caches))
        for load in loads:
            runs: Runs = {}
            for name in in_turn(RUNS, number):
                progress(f"{setting.title}, round {number + 1} of {rounds}, load {load}, {name}")
                contestant, _, cache = name.partition(", ")
                runs[name] = serve(
                    setting,
                    contestant,
                    [(seconds, load * capacities[-1])],
                    seed=number,
                    numba_cache=caches.empty() if cache == "cold" else caches.warm,
                )
            found[load].append(runs)
    progress("")
    rates = ", ".join(f"{rate:,.0f}" for rate in capacities)
    print(f"\n{setting.title}: SLO {1e3 * setting.slo_s:.0f} ms, batches of up to {setting.max_batch_size}, ", end="")
    print(f"{rates} a second in a closed loop of minimal")
    print("  " + disturbance([runs["minimal"] for every in found.values() for runs in every]))
    for load, every in found.items():
        show(load, every)
    report(setting.title, found, ", noisy neighbor" * noisy)


def report(title: str, found: dict[float, list[Runs]], beside: str) -> None:
    """Report the figures of one model, of warm and cold runs together."""
    calm = {load: every for load, every in found.items() if load < 1}
    compared = [compare(runs, cache) for every in calm.values() for runs in every for cache in CACHES]
    if compared:
        case = f"{title}, {', '.join(map(str, calm))}× capacity{beside}"
        note = f"the worst by {max(0.0, *(one.worst for one in compared)):.3f}"
        SHORT.report(sum(one.short for one in compared), case=case, of=sum(one.of for one in compared), note=note)
    for load in found.keys() - calm.keys():
        ours, greedy, minimal = (
            [run["on_time"] for runs in found[load] for name, run in runs.items() if name.startswith(contestant)]
            for contestant in CONTESTANTS
        )
        note = f"greedy {min(greedy):.2f} to {max(greedy):.2f}, minimal {min(minimal):.2f} to {max(minimal):.2f}"
        OVERLOAD.report(ours, case=f"{title}, {load}× capacity{beside}", note=note)


def show(load: float, every: list[Runs]) -> None:
    print(f"\n  load {load}")
    for name in RUNS:
        whole = [runs[name]["on_time"] for runs in every]
        lag = max(runs[name]["lag_s"] for runs in every)
        print(f"    {name:14} whole run {statistics.median(whole):.3f} ({min(whole):.3f}–{max(whole):.3f})", end="")
        print(f"   sent up to {1e3 * lag:4.0f} ms late (p99)   ", end="")
        print(" | ".join(as_text(runs[name]["windows"]) for runs in every))
    for cache in CACHES:
        compared = [compare(runs, cache) for runs in every]
        short, of = sum(one.short for one in compared), sum(one.of for one in compared)
        worst = max(one.worst for one in compared)
        print(f"    {cache}: {short} of {of} windows short, the worst by {worst:.3f}")


def main() -> None:
    options_parser = parser(__doc__, seconds=4.0, rounds=2)
    options_parser.add_argument("--loads", type=float, nargs="+", default=LOADS, help="shares of capacity")
    options = options_parser.parse_args()
    print(f"contestants: {', '.join(CONTESTANTS)}; a new process each" + (", a noisy neighbor" * options.noisy))
    with caches() as made, neighbor(options.noisy):
        for name in options.models or SETTINGS:
            measure(SETTINGS[name], made, list(options.loads), options.rounds, options.seconds, noisy=options.noisy)


if __name__ == "__main__":
    main()
