"""The default policy on hard workloads, beside greedy and early drop with the true mean; in virtual time.

    python benchmarks/run.py noise [--seeds 1 2] [--only TEXT] [--all]

The output has each row in which the default is more than 0.02 behind the better of the two. With classes, it has each
row in which the default is more than 0.02 behind early drop, or in which the most urgent class has less than 0.99 on
time although early drop gives it 0.99. It also has the number of rows of each family that pass.
``STREAMINFER_TRACES`` names a folder of recorded arrivals.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor

import attrs
from _lib.figures import Figure
from _lib.noise_workloads import Served, Workload, rows, serve, share

TOLERANCE = 0.02
URGENT = 0.99
BEHIND = Figure(
    "hard workloads with a share on time worse by over 0.02",
    over="the better of greedy and early drop",
    form="{:.0f}",
    at_most=0,
)
FAMILIES = {
    "noise": "durations that scatter",
    "fast": "durations that scatter, batches of 0.2 to 6 ms",
    "classes": "priority classes",
    "classes of shapes": "priority classes of 2 to 8 shapes",
    "tight": "tight deadlines",
    "shapes": "shapes that share no batch",
    "arrivals": "bursts and recorded arrivals",
    "workers": "several workers",
    "changes": "a device that changes its speed",
    "filled up": "batches that the model fills up",
    "mixed limits": "deadlines that differ",
    "no deadline": "some requests without a deadline",
    "start": "the first half second",
}
"""Common feature of the rows of each family."""


@attrs.frozen
class Found:
    """Shares on time of one row.

    Attributes:
        ours: share of the default policy.
        greedy: share of greedy.
        early_drop: share of early drop, which knows the true mean.
        urgent: shares of the most urgent class, by the default policy and by early drop; ``None`` without classes.
        batch_size: mean batch size of the default policy.
    """

    ours: float
    greedy: float
    early_drop: float
    urgent: tuple[float, float] | None
    batch_size: float

    @property
    def holds(self) -> bool:
        best = max(self.greedy, self.early_drop) if self.urgent is None else self.early_drop
        fits_alone = self.urgent is not None and self.urgent[1] >= URGENT
        return self.ours >= best - TOLERANCE and (self.urgent is None or not fits_alone or self.urgent[0] >= URGENT)


def measure(number: int, seeds: list[int], n: int) -> Found:
    row = rows(n)[number]
    served: dict[str, list[Served]] = {
        policy: [serve(row, policy, seed) for seed in seeds] for policy in ("lookahead", "greedy", "early_drop")
    }
    ours, drop = served["lookahead"], served["early_drop"]
    urgent = None
    if row.priorities is not None:
        urgent = (share(row, ours, 0), share(row, drop, 0))
    return Found(
        share(row, ours),
        share(row, served["greedy"]),
        share(row, drop),
        urgent,
        sum(one.batch_size for one in ours) / len(ours),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--n", type=int, default=4000)
    parser.add_argument("--only", default="", help="rows whose family or name has this text")
    parser.add_argument("--all", action="store_true", help="print every row")
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    made = rows(options.n)
    wanted = [at for at, row in enumerate(made) if options.only in f"{row.family}: {row.name}"][:: options.every]
    held: dict[str, list[bool]] = {}
    print(f"{'':78}{'ours':>7}{'greedy':>8}{'early':>7}{'urgent (early)':>17}{'batch':>7}")
    with ProcessPoolExecutor(int(os.environ.get("JOBS", "2"))) as pool:
        results = pool.map(measure, wanted, [options.seeds] * len(wanted), [options.n] * len(wanted))
        for at, found in zip(wanted, results, strict=True):
            row: Workload = made[at]
            held.setdefault(row.family, []).append(found.holds)
            if options.all or not found.holds:
                urgent = "" if found.urgent is None else f"{found.urgent[0]:.3f} ({found.urgent[1]:.3f})"
                print(
                    f"{row.name:78}{found.ours:7.3f}{found.greedy:8.3f}{found.early_drop:7.3f}{urgent:>17}{found.batch_size:7.1f}",
                    flush=True,
                )
    for family, rows_held in held.items():
        print(f"{family:20} {sum(rows_held)} of {len(rows_held)} rows hold")
    if len(wanted) == len(made):  # a part of the rows would give smaller counts
        report(held, "one seed" if len(options.seeds) == 1 else f"mean of {len(options.seeds)} seeds")


def report(held: dict[str, list[bool]], seeds: str) -> None:
    counts = {"all": [one for rows_held in held.values() for one in rows_held]}
    counts |= {FAMILIES[family]: rows_held for family, rows_held in held.items()}
    for subject, rows_held in counts.items():
        BEHIND.report(rows_held.count(False), case=f"{subject}, {seeds}", of=len(rows_held))


if __name__ == "__main__":
    main()
