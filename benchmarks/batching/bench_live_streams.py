"""Live audio streams held with 99 % of chunks on time: batched, over the best unbatched way in the same run.

Every microphone sends a chunk of 32 ms on time, carries the recurrent state of a real voice detector, and needs each
response before its next chunk is due. Calibration, loads, turns and the judgment of the repeats are the demo's, without
cameras (``examples/demo/load_sweep.py``, ``examples/demo/comparison.py``).

    python benchmarks/run.py live_streams [--window 0.5] [--repeats 3]
"""

import argparse
import asyncio
import math

from _lib.figures import Figure
from demo.audio import load_clip
from demo.calibration import choose_baseline, measure_rates
from demo.comparison import Verdict, compare
from demo.findings import Sweep
from demo.load_sweep import sweep_loads
from demo.progress import Progress
from demo.report import SWEEP_HEAD, make_sweep_rows
from demo.sentences import say_headline
from demo.services import ASSETS, batched
from demo.trials import Stage

STREAMS = Figure(
    "live audio streams with 99 % of chunks on time, batched",
    over="the best unbatched way written by hand",
    form="{:.1f}×",
    at_least=2.0,
)


async def measure(window_s: float, repeats: int, sessions: int) -> Sweep:
    """Calibrate, then drive both ways in turn."""
    progress = Progress()
    stage = Stage(load_clip(ASSETS / "librivox_0870.wav"), None, 0, progress.say)
    rates = await measure_rates(stage, window_s)
    baseline = await choose_baseline(stage, rates, window_s)
    ways = (batched(sessions), baseline)
    sweep = await sweep_loads(stage, ways, rates[baseline], seconds=window_s, repeats=repeats)
    progress.done()
    return sweep


def main() -> None:
    """Measure, and print the table, the sentence and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--window", type=float, default=0.5, help="seconds that each load is measured")
    parser.add_argument("--repeats", type=int, default=3, help="how often")
    parser.add_argument("--sessions", type=int, default=1, help="onnxruntime sessions of the batched way")
    options = parser.parse_args()
    sweep = asyncio.run(measure(options.window, options.repeats, options.sessions))
    print("| " + " | ".join(SWEEP_HEAD) + " |")
    print("|" + "---|" * len(SWEEP_HEAD))
    for row in make_sweep_rows(sweep):
        print("| " + " | ".join(row) + " |")
    comparison = compare(sweep)
    print(f"\n{say_headline(comparison, sweep)}")
    if not math.isnan(comparison.ratio):  # otherwise the sentence says why there is no ratio
        note = "" if comparison.verdict is Verdict.RATIO else comparison.verdict.value
        STREAMS.report(comparison.ratio, note=note)


if __name__ == "__main__":
    main()
