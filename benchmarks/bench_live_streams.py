"""Live audio streams held with 99 % of chunks on time: batched, over the best unbatched way in the same run.

Every microphone sends a chunk of 32 ms on time, carries the recurrent state of a real voice detector, and needs each
answer before its next chunk is due. Ramp, hold and choice of the baseline are the demo's, without cameras
(``examples/demo/trials.py``).

    python benchmarks/bench_live_streams.py [--seconds 5] [--budget 50]
"""

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from demo.audio import load_clip
from demo.findings import Search
from demo.progress import Progress
from demo.services import ASSETS, batched
from demo.trials import Stage, rank_unbatched, search

BAR = 2.0


async def measure(seconds: float, budget_s: float, sessions: int) -> tuple[Search, Search]:
    progress = Progress()
    stage = Stage(load_clip(ASSETS / "librivox_0870.wav"), None, 0, progress.say)
    ours = await search(stage, [batched(sessions)], seconds, 0.45 * budget_s)
    finalists = list(await rank_unbatched(stage))[:2]
    baseline = await search(stage, finalists, seconds, budget_s - progress.elapsed_s)
    progress.done()
    return ours, baseline


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a number of streams has to hold")
    parser.add_argument("--budget", type=float, default=50.0, help="seconds to find both numbers")
    parser.add_argument("--sessions", type=int, default=1, help="onnxruntime sessions of the batched way")
    options = parser.parse_args()
    searches = asyncio.run(measure(options.seconds, options.budget, options.sessions))
    print("| live audio streams | held | chunks on time | p99 | mean batch | CPU a chunk | processors: this, others |")
    print("|---|---|---|---|---|---|---|")
    for one in searches:
        hold = one.hold
        p99 = f"{1e3 * hold.chunks.latency.quantile(0.99):.1f} ms" if hold.chunks.latency.count else "-"
        print(
            f"| {hold.way.name} | {hold.microphones if hold.enough else f'not even {hold.microphones}'} "
            f"| {hold.chunks.share_on_time:.2%} | {p99} | {hold.voice.mean_batch_size:.1f} "
            f"| {1e6 * hold.cpu_per_chunk_s:.0f} µs "
            f"| {hold.cpu.process_s / hold.cpu.wall_s:.2f}, {hold.cpu.others_s / hold.cpu.wall_s:.2f} |"
        )
    ours, baseline = (one.hold for one in searches)
    if ours.enough and baseline.enough:
        print(f"\nbatched over unbatched: {ours.microphones / baseline.microphones:.2f} (bar: at least {BAR:g})")
    else:
        print("\nbatched over unbatched: unknown, since a hold failed until the time was up")


if __name__ == "__main__":
    main()
