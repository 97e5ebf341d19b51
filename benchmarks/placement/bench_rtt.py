"""Plans on real round-trip times, judged on later ones.

    python benchmarks/run.py rtt

Personal devices are sites or clusters by chance. A plan sees the earlier slices; the later ones are its judge: a
cluster keeps its promise if at least the promised share of its requests stays within the SLO. Part 1: the halves and
other splits, beside planning on measured quantiles, on means, and the nearest site. Part 2: a car over 5G: half of the
runs of a road predict the p99 of the other half, or refuse to. Part 3: promises that broke, and how soon the watch
says so. ``STREAMINFER_RTT`` names the folder of the recordings; without it the data are synthetic.
"""

import argparse
from collections.abc import Callable, Mapping

import numpy as np
from _lib.rtt_data import Floats, car, seattle

from streaminfer.placement import FittedAccess, LatencyPromise, Link, PromiseWatch, RttSamples, Unpromisable
from streaminfer.placement.network.promised_rtt import UNPROMISABLE_S

SITES = 20
DEADLINES_S = (0.5, 0.7, 0.85, 1.0, 1.5, 2.0, 3.0)
SHARES = (0.9, 0.95, 0.99)
ACCURACY = 0.15

Names = list[str]
Choice = dict[str, str]
Table = Mapping[str, Mapping[str, float]]


def split(rtt_s: Floats, seed: int) -> tuple[Floats, Names, Names]:
    """Devices drawn as sites and clusters: their round-trip times, and the names of both."""
    order = np.random.default_rng(seed).permutation(rtt_s.shape[1])
    sites, clusters = order[:SITES], order[SITES:]
    return rtt_s[:, clusters][:, :, sites], [f"cluster {n}" for n in clusters], [f"site {n}" for n in sites]


def lowest(values: Table, limit_s: float) -> Choice:
    """The site of least value for each cluster, where it is within a limit."""
    best = {cluster: min(row, key=row.__getitem__) for cluster, row in values.items()}
    return {cluster: site for cluster, site in best.items() if values[cluster][site] <= limit_s}


def fewest(values: Table, limit_s: float) -> Choice:
    """As few sites as a greedy cover finds: a cheap plan, in which most clusters do not have their best site."""
    reach = {cluster: {site for site, value in row.items() if value <= limit_s} for cluster, row in values.items()}
    left = {cluster: sites for cluster, sites in reach.items() if sites}
    chosen: Choice = {}
    while left:
        sites = sorted({site for row in left.values() for site in row})
        best = max(sites, key=lambda site: sum(site in row for row in left.values()))
        chosen |= {cluster: best for cluster, row in left.items() if best in row}
        left = {cluster: row for cluster, row in left.items() if best not in row}
    return chosen


def kept(choice: Choice, future: RttSamples, share: float, limit_s: float) -> float:
    """The part of the clusters that kept their promise."""
    held = [(future.rtt_s[cluster][site] <= limit_s).mean() >= share for cluster, site in choice.items()]
    return float(np.mean(held)) if held else float("nan")


def table(samples: RttSamples, value: Callable[[Floats], float]) -> Table:
    return {cluster: {site: value(column) for site, column in row.items()} for cluster, row in samples.rtt_s.items()}


def measured(share: float) -> Callable[[Floats], float]:
    return lambda column: float(np.quantile(column, share))


def promised(links: Mapping[str, Mapping[str, Link]], share: float) -> Table:
    return {cluster: {site: link.rtt.quantile(share) for site, link in row.items()} for cluster, row in links.items()}


def promises(rtt_s: Floats, seeds: int) -> None:
    n = len(rtt_s)
    splits = {
        "1st half, 2nd half": (rtt_s[: n // 2], rtt_s[n // 2 :]),
        "2nd half, 1st half": (rtt_s[n // 2 :], rtt_s[: n // 2]),
        "1st third, 2nd third": (rtt_s[: n // 3], rtt_s[n // 3 : 2 * n // 3]),
        "2nd third, 3rd third": (rtt_s[n // 3 : 2 * n // 3], rtt_s[2 * n // 3 :]),
        "1st quarter, 2nd quarter": (rtt_s[: n // 4], rtt_s[n // 4 : n // 2]),
    }
    print(
        f"{SITES} sites, the other devices are clusters, {seeds} draws; part of the clusters promised / of these, kept"
    )
    head = ("ours", "ours, fewest sites", "measured quantile", "mean RTT", "nearest")
    print(f"{'plan on, judged on':<26}{'promise':>14}" + "".join(f"{text:>20}" for text in head))
    worst = 1.0
    for name, (past_s, future_s) in splits.items():
        rows: dict[tuple[float, float], list[list[tuple[float, float]]]] = {}
        for seed in range(seeds):
            part, clusters, sites = split(past_s, seed)
            past = RttSamples.from_array(part, clusters, sites)
            future = RttSamples.from_array(split(future_s, seed)[0], clusters, sites)
            links = past.links()
            mean = table(past, lambda column: float(column.mean()))
            median = table(past, measured(0.5))
            for share in SHARES:
                ours, before = promised(links, share), table(past, measured(share))
                for limit_s in DEADLINES_S:
                    choices = (
                        lowest(ours, limit_s),
                        fewest(ours, limit_s),
                        lowest(before, limit_s),
                        lowest(mean, limit_s),
                        lowest(median, UNPROMISABLE_S),
                    )
                    found = [(len(it) / len(clusters), kept(it, future, share, limit_s)) for it in choices]
                    rows.setdefault((share, limit_s), []).append(found)
        for (share, limit_s), draws in rows.items():
            offered, held = np.array(draws).transpose(2, 1, 0)
            parts = [
                np.average(np.nan_to_num(h), weights=o) if o.sum() else 1.0 for o, h in zip(offered, held, strict=True)
            ]
            if offered[0].mean() >= 0.02:
                worst = min(worst, *parts[:2])
            cells = "".join(f"{o:>11.0%} / {h:>6.1%}" for o, h in zip(offered.mean(axis=1), parts, strict=True))
            print(f"{name:<26}{f'{share:.0%} in {limit_s:g} s':>14}{cells}")
    print(f"worst part of the clusters that kept a promise: {worst:.1%} (bar: 95 %)")


def cars(seeds: int) -> None:
    print(f"\n{'road':<34}{'runs':>5}{'p99 promised':>14}{'refused':>9}{'predicted/measured':>22}")
    outside = 0
    for name, runs in sorted(car().items()):
        ratios: list[float] = []
        refused = 0
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(runs))
            past, future = order[: (len(runs) + 1) // 2], order[(len(runs) + 1) // 2 :]
            try:
                profile = FittedAccess.fit(name, [runs[k].rtt_s for k in past]).profile(0.99)
            except Unpromisable:
                refused += 1
                continue
            measured_s = float(np.quantile(np.concatenate([runs[k].rtt_s for k in future]), 0.99))
            ratios.append(profile.rtt.quantile(0.99) / measured_s)
        outside += sum(not 1 / (1 + ACCURACY) <= ratio <= 1 + ACCURACY for ratio in ratios)
        spread = f"{min(ratios):.2f} – {max(ratios):.2f}" if ratios else "–"
        print(f"{name:<34}{len(runs):>5}{len(ratios):>11}/{seeds:<2}{refused:>9}{spread:>22}")
    print(f"promises outside of 15 %: {outside} (bar: 0)")


def watch(rtt_s: Floats, seeds: int) -> None:
    """The measured p95 of the nearest site is promised, which often breaks: does the watch say so?"""
    half = len(rtt_s) // 2
    found = missed = false = quiet = 0
    after: list[int] = []
    for seed in range(seeds):
        part, clusters, sites = split(rtt_s, seed)
        past, future = RttSamples.from_array(part[:half], clusters, sites), part[half:]
        near = lowest(table(past, measured(0.5)), UNPROMISABLE_S)
        bounds = {
            c: LatencyPromise(latency_s=max(float(np.quantile(past.rtt_s[c][s], 0.95)), 0.01), share=0.95)
            for c, s in near.items()
        }
        guard = PromiseWatch(bounds)
        for cluster, site in near.items():
            column = future[:, clusters.index(cluster), sites.index(site)]
            alarm = next((at for at, value in enumerate(column) if guard.observe(cluster, float(value))), None)
            share = float((column <= bounds[cluster].latency_s).mean())
            if share < 0.9:
                found, missed = found + (alarm is not None), missed + (alarm is None)
                after += [] if alarm is None else [alarm]
            elif share >= 0.95:
                false, quiet = false + (alarm is not None), quiet + (alarm is None)
    print(f"\nbroken promises (p95 kept by less than 90 %): {found} of {found + missed} found, "
          f"half of them within {np.median(after):.0f} of {half} measurements")  # fmt: skip
    print(f"kept promises: {false} of {false + quiet} raised an alarm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="draws of sites")
    seeds = parser.parse_args().seeds
    where, rtt_s = seattle()
    print(where)
    promises(rtt_s, seeds)
    cars(4 * seeds)
    watch(rtt_s, seeds)


if __name__ == "__main__":
    main()
