"""Wake-ups of an idle batcher, counted at the loop's selector, beside polling every millisecond, as peers do.

python benchmarks/run.py idle
"""

import asyncio
import contextlib
import selectors
from collections.abc import Awaitable, Callable

from _lib.figures import Figure

import streaminfer as si

SECONDS = 1.0
WAKE_UPS = Figure("wake-ups that an idle batcher adds to an empty loop in a second", form="{:.0f}", at_most=0)


class CountingSelector(selectors.DefaultSelector):
    """Selector that counts the wake-ups of the loop."""

    turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        return super().select(timeout)


async def idle(start: Callable[[], Awaitable[object]], selector: CountingSelector) -> int:
    keep = await start()
    before = selector.turns
    await asyncio.sleep(SECONDS)
    del keep
    return selector.turns - before


async def nothing() -> None:
    return None


async def batcher() -> object:
    predict = si.AdaptiveBatcher(max_batch_size=64, slo_s=0.05, max_in_flight=2).wrap(lambda x: x)
    await asyncio.gather(*(predict(float(number)) for number in range(100)))
    return predict


async def polling() -> object:
    async def poll() -> None:
        while True:
            await asyncio.sleep(0.001)

    return asyncio.ensure_future(poll())


def main() -> None:
    counts = {}
    for name, start in {
        "an empty loop": nothing,
        "an idle AdaptiveBatcher": batcher,
        "polling every ms": polling,
    }.items():
        selector = CountingSelector()
        loop = asyncio.SelectorEventLoop(selector)
        counts[name] = loop.run_until_complete(idle(start, selector))
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.close()
    for name, count in counts.items():
        print(f"{name:26} {count:5} turns of the loop in {SECONDS:.0f} s")
    WAKE_UPS.report(counts["an idle AdaptiveBatcher"] - counts["an empty loop"])


if __name__ == "__main__":
    main()
