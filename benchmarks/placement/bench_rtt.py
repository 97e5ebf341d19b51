"""Plans on real round-trip times, judged on later ones.

    python benchmarks/run.py rtt

Each personal device is drawn as a site or a cluster. A plan uses the earlier measurements, and the later ones test it:
a cluster keeps its promise if at least the promised share of its requests stays within the SLO. Part 1: plans on halves
and other splits, beside plans on measured quantiles, on means, and with the nearest site. Part 2: a car over 5G: half
of the runs of a road predict the p99 of the other half, or make no promise. Part 3: broken promises, and the time until
the watch reports them. ``STREAMINFER_RTT`` names the folder of the recordings; the default is ``../shared/rtt`` beside
the checkout. Without recordings the data are synthetic.
"""

import argparse
from collections.abc import Callable, Mapping

import numpy as np
from _lib.figures import Figure
from _lib.rtt_data import Floats, car, seattle

from streaminfer.batching import ServiceTime
from streaminfer.placement import (
    END_TO_END,
    DeviceGroup,
    FittedAccess,
    LatencyPromise,
    Link,
    Model,
    Problem,
    PromiseWatch,
    RttSamples,
    ServiceClass,
    Shard,
    Site,
    Unpromisable,
    UserCluster,
    Variant,
    plan,
    site_shares,
)
from streaminfer.placement.network.promised_rtt import UNPROMISABLE_S

SITES = 20
PROMISES = (
    (0.9, 0.5), (0.9, 0.85), (0.9, 1.0), (0.9, 1.5),
    (0.95, 0.5), (0.95, 1.0), (0.95, 1.5), (0.95, 2.0),
    (0.99, 1.0), (0.99, 1.5), (0.99, 2.0), (0.99, 3.0),
)  # fmt: skip
"""Share of the requests, and the round-trip time in seconds that the SLO leaves for the network."""
MODEL_S = 0.05
"""Part of the SLO that is for queue and batch; the benchmark assumes that each request uses all of it."""
ACCURACY = 0.15
KEPT = Figure("clusters that keep their promise on later round-trip times", form="{:.1f} %", at_least=95)
OUTSIDE = Figure("promised p99s of 5G users that are over 15 % off the later one", form="{:.0f}", at_most=0)
FOUND = Figure("clearly broken promises that `PromiseWatch` finds", form="{:.0f} %")
FALSE = Figure("promises that hold and of which `PromiseWatch` raises an alarm", form="{:.0f} %")

Names = list[str]
Choice = dict[str, str]
Table = Mapping[str, Mapping[str, float]]


def split(rtt_s: Floats, seed: int) -> tuple[Floats, Names, Names]:
    """Draw devices as sites and clusters; return their round-trip times, and the names of clusters and sites."""
    order = np.random.default_rng(seed).permutation(rtt_s.shape[1])
    sites, clusters = order[:SITES], order[SITES:]
    return rtt_s[:, clusters][:, :, sites], [f"cluster {n}" for n in clusters], [f"site {n}" for n in sites]


def lowest(values: Table, limit_s: float) -> Choice:
    """Return the site of lowest value for each cluster whose lowest value is within the limit."""
    best = {cluster: min(row, key=row.__getitem__) for cluster, row in values.items()}
    return {cluster: site for cluster, site in best.items() if values[cluster][site] <= limit_s}


def planned(links: Mapping[str, Mapping[str, Link]], values: Table, share: float, limit_s: float, seed: int) -> Choice:
    """Plan the clusters that can be promised; return the site that gets most of the requests of each cluster."""
    clusters = [cluster for cluster, row in values.items() if min(row.values()) <= limit_s]
    if not clusters:
        return {}
    prices = np.random.default_rng(seed).uniform(0.5, 2.0, SITES)
    sites = sorted({site for row in values.values() for site in row})
    shard = Shard(service_time={"cpu": ServiceTime.affine(0.002, 0.001)})
    problem = Problem(
        clusters=tuple(
            UserCluster(name=cluster, rates=(20.0,), access=END_TO_END.name, service_class="all", model="model")
            for cluster in clusters
        ),
        sites=tuple(
            Site(name=site, devices=(DeviceGroup(kind="cpu", slots=2, price=float(price)),))
            for site, price in zip(sites, prices, strict=True)
        ),
        models=(Model(name="model", variants=(Variant(name="only", shards=(shard,)),)),),
        access=(END_TO_END,),
        service_classes=(ServiceClass(name="all", slo_s=limit_s + MODEL_S, share=share),),
        links={cluster: links[cluster] for cluster in clusters},
    )
    shares = site_shares(plan(problem))
    return {cluster: max(row, key=row.__getitem__) for cluster, row in shares.items()}


def kept(choice: Choice, future: RttSamples, share: float, limit_s: float) -> float:
    """Return the share of the clusters that kept their promise; NaN without clusters."""
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
        "1st half, judged on the 2nd": (rtt_s[: n // 2], rtt_s[n // 2 :]),
        "1st third, judged on the 2nd": (rtt_s[: n // 3], rtt_s[n // 3 : 2 * n // 3]),
        "2nd third, judged on the 3rd": (rtt_s[n // 3 : 2 * n // 3], rtt_s[2 * n // 3 :]),
    }
    print(
        f"{SITES} sites, the other devices are clusters, {seeds} draws; part of the clusters promised / of these, kept"
    )
    head = ("plan", "promised quantile", "measured quantile", "mean RTT", "nearest")
    print(f"{'plan on':<30}{'promise':>14}" + "".join(f"{text:>20}" for text in head))
    clusters_kept = [0.0, 0.0]
    for name, (past_s, future_s) in splits.items():
        worst = 1.0
        rows: dict[tuple[float, float], list[list[tuple[float, float]]]] = {}
        for seed in range(seeds):
            part, clusters, sites = split(past_s, seed)
            past = RttSamples.from_array(part, clusters, sites)
            future = RttSamples.from_array(split(future_s, seed)[0], clusters, sites)
            links = past.links()
            mean = table(past, lambda column: float(column.mean()))
            median = table(past, measured(0.5))
            for share, limit_s in PROMISES:
                ours, before = promised(links, share), table(past, measured(share))
                choices = (
                    planned(links, ours, share, limit_s, seed),
                    lowest(ours, limit_s),
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
            clusters_kept[0] += float((offered[0] * np.nan_to_num(held[0])).sum())
            clusters_kept[1] += float(offered[0].sum())
            if offered[0].mean() >= 0.1:
                worst = min(worst, float(parts[0]))
            cells = "".join(f"{o:>11.0%} / {h:>6.1%}" for o, h in zip(offered.mean(axis=1), parts, strict=True))
            print(f"{name:<30}{f'{share:.0%} in {limit_s:g} s':>14}{cells}")
        KEPT.report(100 * worst, case=f"worst promise, planned on the {name}")
    KEPT.report(100 * clusters_kept[0] / clusters_kept[1], case="all promises, three splits")


def cars(seeds: int) -> None:
    print(f"\n{'road':<34}{'runs':>5}{'p99 promised':>14}{'refused':>9}{'predicted/measured':>22}")
    outside, fits, rejections = 0, [], 0
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
        fits += ratios
        rejections += refused
        outside += sum(not 1 / (1 + ACCURACY) <= ratio <= 1 + ACCURACY for ratio in ratios)
        spread = f"{min(ratios):.2f} – {max(ratios):.2f}" if ratios else "–"
        print(f"{name:<34}{len(runs):>5}{len(ratios):>11}/{seeds:<2}{refused:>9}{spread:>22}")
    spread = f"{min(fits):.2f}× to {max(fits):.2f}×, " if fits else ""
    OUTSIDE.report(outside, note=f"{spread}{len(fits)} fits; {rejections} fits unpromisable")


def watch(rtt_s: Floats, seeds: int) -> None:
    """Report which broken promises the watch finds; it promises the measured p95 of the nearest site."""
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
    print(f"\nbroken promises (p95 kept by less than 90 %): half of those found are found within "
          f"{np.median(after):.0f} of {half} measurements")  # fmt: skip
    FOUND.report(100 * found / (found + missed), note=f"{found} of {found + missed}")
    FALSE.report(100 * false / (false + quiet), note=f"{false} of {false + quiet}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="draws of sites; with few, one of them decides a row")
    seeds = parser.parse_args().seeds
    where, rtt_s = seattle()
    print(where)
    promises(rtt_s, seeds)
    cars(4 * seeds)
    watch(rtt_s, seeds)


if __name__ == "__main__":
    main()
