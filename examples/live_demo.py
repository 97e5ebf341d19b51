"""Live speech and video through two real models, batched and unbatched, on this machine: ``make demo``.

Microphones send a chunk every 32 ms through one voice detector, each with its own recurrent state, and some cameras
send 24 frames a second to a face detector. How many microphones can this machine hold with 99 % of all chunks answered
before the next one is due, and how many without batching? Then visitors upload more pictures than the face detector can
look at, without and with a cache. Error budgets say what each trial spent. Under a minute; then a table, and
``report.html``.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from demo.audio import load_clip
from demo.faces import FULL
from demo.findings import Search, Step
from demo.machine import describe_machine
from demo.page import make_page
from demo.progress import Progress
from demo.recognition import listen_once
from demo.report import Outcome, describe_outcome, make_rows, render_table
from demo.services import ASSETS, UNBATCHED, Way, batched, voice_service
from demo.trials import Stage, hold, rank_unbatched, search
from demo.video import load_frames
from demo.visitors import visit

BUDGET_S = 20.0
"""For finding the number of microphones of one way, the hold included."""
TOTAL_S = 46.0
"""For both, from the start of the demo; the visitors and the report take ten seconds more."""
BASELINE_S = 5.0
"""An unbatched way has to hold no longer than this, which is the easier and leaves time to try more numbers."""
FINALISTS = 2
"""Unbatched ways, of those that answer most chunks a second, of which the one that stands most becomes the baseline."""


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=7.5, help="how long a number of microphones has to hold")
    parser.add_argument("--streams", type=int, help="this many microphones, instead of as many as the machine holds")
    parser.add_argument("--cameras", type=int, default=2, help="cameras beside the microphones")
    parser.add_argument("--sessions", type=int, default=1, help="onnxruntime sessions for the batched voice detector")
    parser.add_argument(
        "--visitors", type=float, default=3.0, help="how many seconds visitors come, without and with a cache; 0: never"
    )
    parser.add_argument("--report", type=Path, default=Path("report.html"), help="where the report goes")
    parser.add_argument("--no-baseline", action="store_true", help="leave the unbatched ways out")
    options = parser.parse_args(arguments)
    numbers = (options.seconds, options.sessions, 1 if options.streams is None else options.streams)
    if min(numbers) <= 0 or min(options.cameras, options.visitors) < 0:
        parser.error("--seconds, --sessions and --streams take a number above 0, --cameras and --visitors 0 or more")
    return options


async def try_ways(stage: Stage, ways: Sequence[Way], streams: int | None, seconds: float, budget_s: float) -> Search:
    """As many microphones as the machine holds, or as many as were asked for."""
    if streams is None:
        return await search(stage, ways, seconds, budget_s)
    held = await hold(stage, ways[0], streams, seconds)
    return Search([Step(streams, held.chunks.share_on_time, held=True)], held)


async def run(options: argparse.Namespace, progress: Progress) -> Outcome:
    """The whole demo."""
    progress.say("decoding the clips")
    clip = load_clip(ASSETS / "librivox_0870.wav")
    frames = load_frames(ASSETS / "astronaut_pan.mp4", FULL.size)
    async with voice_service(UNBATCHED[0], clip) as service:
        reference = await listen_once(service, clip)
    stage = Stage(clip, frames, options.cameras, progress.say)
    searches = [await try_ways(stage, [batched(options.sessions)], options.streams, options.seconds, BUDGET_S)]
    rates: dict[str, float] = {}
    if not options.no_baseline:
        ranked = await rank_unbatched(stage)
        rates = {way.name: rate for way, rate in ranked.items()}
        finalists = list(ranked)[:FINALISTS]
        seconds = min(options.seconds, BASELINE_S)
        searches.append(await try_ways(stage, finalists, options.streams, seconds, TOTAL_S - progress.elapsed_s))
    visited = await visit(frames, options.visitors, progress.say) if options.visitors else None
    progress.say("drawing the report")
    return Outcome(describe_machine(), clip, frames, options.cameras, reference, searches, rates, visited)


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo, prints the table and writes the report."""
    options = parse(arguments)
    progress = Progress()
    outcome = asyncio.run(run(options, progress))
    options.report.write_text(make_page(outcome), encoding="utf-8")
    progress.done()
    print(render_table(make_rows(outcome)))
    print()
    print("\n".join(describe_outcome(outcome)))
    print(f"\n{options.report} has the pictures. It took {progress.elapsed_s:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
