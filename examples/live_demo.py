"""Live speech and video through two real models, batched and unbatched, on this machine: ``make demo``.

Microphones send a chunk of speech every 32 ms through one voice detector, each with its own recurrent state. First the
demo measures the rate that the best unbatched way, written by hand around onnxruntime, completes on this machine. Then
it runs the batched and the unbatched way in turn at fixed multiples of that rate, from 0.25 to 4, several times, and
compares the loads at which each still has 99 % of chunks on time. It says "too noisy to tell" if its repeats disagree.

After that, cameras send 24 frames per second to a face detector beside the microphones. Then, for a while, there are
twice as many cameras as the detector can process: only the newest frame of each counts, and the report has the ages of
results, the drops by reason and the results per camera. Last, visitors upload more pictures than the detector can
process, without and with a cache. Error budgets show how much each part spent. The demo takes about a minute, and
prints one sentence and tables, and writes ``report.html``.
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

from demo.audio import CHUNK_S, load_clip
from demo.calibration import choose_baseline, measure_rates
from demo.comparison import compare
from demo.faces import FULL
from demo.findings import Sweep
from demo.live_page import serve_page_during
from demo.load_sweep import LOADS, WINDOW_S, sweep_loads
from demo.machine import describe_machine
from demo.overload import overload
from demo.progress import Progress
from demo.recognition import listen_once
from demo.report import STREAMS_HEAD, SWEEP_HEAD, Outcome, make_rows, make_sweep_rows, render_table
from demo.sentences import describe_outcome, say_headline
from demo.services import ASSETS, UNBATCHED, batched, detector_by_hand
from demo.trials import Stage, hold
from demo.video import load_frames
from demo.visitors import visit

SWEEP_END_S = 34.0
"""Seconds after the start by which the last repeat must end; the following parts take about 15 s."""
COMFORT = 0.5
"""Number of microphones beside the cameras, over the smallest limit of the batched way."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, help="of the runs over loads, instead of as many as fit into a minute")
    parser.add_argument("--window", type=float, default=WINDOW_S, help="seconds that each load is measured")
    parser.add_argument("--seconds", type=float, default=1.5, help="seconds of microphones with cameras beside them")
    parser.add_argument("--cameras", type=int, default=2, help="cameras beside the microphones")
    parser.add_argument("--sessions", type=int, default=1, help="onnxruntime sessions for the batched voice detector")
    parser.add_argument(
        "--overload", type=float, default=4.0, help="seconds of cameras that are too many in the middle; 0: none"
    )
    parser.add_argument(
        "--visitors", type=float, default=1.5, help="how many seconds visitors come, without and with a cache; 0: never"
    )
    parser.add_argument("--report", type=Path, default=Path("report.html"), help="where the report goes")
    options = parser.parse_args(arguments)
    positive = (options.seconds, options.window, options.sessions, 1 if options.repeats is None else options.repeats)
    if min(positive) <= 0 or min(options.cameras, options.overload, options.visitors) < 0:
        parser.error(
            "--repeats, --window, --seconds and --sessions take a number above 0; --cameras, --overload and --visitors "
            "take 0 or more"
        )
    return options


def choose_microphones(sweep: Sweep) -> int:
    """Return a number of microphones well below the limit of the batched way; at least one."""
    load = min(limit.low for limit in compare(sweep).batched) or LOADS[0]
    return max(1, round(COMFORT * load * sweep.rate * CHUNK_S))


async def run(options: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the whole demo."""
    began_s = time.monotonic()
    progress.say("decoding the clips")
    clip = load_clip(ASSETS / "librivox_0870.wav")
    frames = load_frames(ASSETS / "astronaut_pan.mp4", FULL.size)
    async with detector_by_hand(UNBATCHED[0]) as detector:
        reference = await listen_once(detector, clip)
    stage = Stage(clip, frames, options.cameras, progress.say)
    rates = await measure_rates(stage, options.window)
    baseline = await choose_baseline(stage, rates, options.window)
    ways = (batched(options.sessions), baseline)
    sweep = await sweep_loads(
        stage, ways, rates[baseline], seconds=options.window, repeats=options.repeats, end_s=began_s + SWEEP_END_S
    )
    count = choose_microphones(sweep)
    holds = [await hold(stage, way, count, options.seconds) for way in ways]
    crowded = await overload(frames, options.overload, progress.say) if options.overload else None
    visited = await visit(frames, options.visitors, progress.say) if options.visitors else None
    named = {way.name: rate for way, rate in rates.items()}
    return Outcome(describe_machine(), clip, frames, options.cameras, reference, named, sweep, holds, crowded, visited)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo, print its results and write the report."""
    options = parse(arguments)
    progress = Progress()
    outcome = asyncio.run(serve_page_during(run(options, progress), progress.tell))
    progress.say("drawing the report")
    # import matplotlib only here: its objects would lengthen garbage collections while chunks are due
    from demo.page import make_page  # noqa: PLC0415

    options.report.write_text(make_page(outcome), encoding="utf-8")
    progress.done()
    print(say_headline(outcome.comparison, outcome.sweep), end="\n\n")
    print(render_table(SWEEP_HEAD, make_sweep_rows(outcome.sweep)), end="\n\n")
    print(render_table(STREAMS_HEAD, make_rows(outcome)), end="\n\n")
    print("\n".join(describe_outcome(outcome)))
    print(f"\n{options.report} has the figures. It took {progress.elapsed_s:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
