"""The peers on the planner's rows, on a virtual clock: deterministic; run by benchmarks/run.py after ours.

The output has, for each peer and figure, the best result over a small grid of settings (peers/batchers.py), chosen for
that figure alone and for its load, and the result with the default settings. Ours has no settings.
"""

import importlib.metadata
import logging
import os
from concurrent.futures import ProcessPoolExecutor

from _lib.workload import ROWS, as_text, measure_row
from batchers import DEFAULTS, TUNED


def measure(number, name, tuned):
    logging.disable()  # BentoML warns of every short latency
    return measure_row(ROWS[number], TUNED[name]() if tuned else [DEFAULTS[name]()])


def main():
    print(
        "peers: "
        + ", ".join(
            f"{name} {importlib.metadata.version(name)}"
            for name in ("bentoml", "async-batcher", "batched", "ray", "smartbatch")
        )
    )
    with ProcessPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        rows = [
            (
                row,
                [(name, *(pool.submit(measure, number, name, tuned) for tuned in (True, False))) for name in DEFAULTS],
            )
            for number, row in enumerate(ROWS)
        ]
        for row, cells in rows:
            print(f"\n{row.name}\n{'':26}{'best settings':>24}{'shipped defaults':>24}   the best settings")
            for name, best, default in cells:
                values, settings = best.result()
                print(f"{name:26}{as_text(values):>24}{as_text(default.result()[0]):>24}   {settings}", flush=True)


if __name__ == "__main__":
    main()
