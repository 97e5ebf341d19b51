"""Workload of the batching benchmarks on a virtual clock: device, arrivals, rows and driver.

Our batcher and the peers' share this module: the peers' environment imports it too, and streaminfer from the source
tree.

The device is a simulated accelerator of 4 + 0.25·n ms, at most 64 rows per batch, one batch at a time: capacity
3,200/s. Callers are an open loop: each request is sent at its instant, independently of the others, and is on time if
its response comes by its deadline.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer.simulation import arrivals
from streaminfer.testing import VirtualLoop, run

BATCH = 64
CAPACITY = 3200.0
SLOS = (0.025, 0.050, 0.100)
BURSTS_SEED = 25
"""Seed, of those below 130, with which the minimal greedy batcher comes nearest to .48 / .62 / .78 on time."""
WARM_UP = 30
"""Rounds of eight requests before the trace, for batchers that learn or start slowly."""

Floats = NDArray[np.float64]
Device = Callable[[int, float], float]
"""Returns the seconds of a batch, given its size and its start in seconds after the trace began."""
Infer = Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]
Ask = Callable[[int, int, int], Awaitable[Any]]
"""Sends one request, given its number, deadline in nanoseconds and priority; returns the batch function's result."""


@dataclass(frozen=True)
class Contestant:
    """A batcher with its settings.

    Attributes:
        start: makes the batcher on a running loop, around a batch function.
        settings: its settings, in words.
        rejections: exceptions that it raises for rejected requests; any other exception fails the benchmark.
        cancels: whether its callers stop waiting at the deadline; otherwise they wait for late responses too.
        warm_up: whether it gets some rounds of requests before the measurement.
        patches: replaces the clocks that the batcher reads while the virtual loop runs.
    """

    start: Callable[[VirtualLoop, Infer], Ask]
    settings: str = ""
    rejections: tuple[type[Exception], ...] = ()
    cancels: bool = False
    warm_up: bool = False
    patches: Callable[[VirtualLoop], AbstractContextManager[Any]] = lambda _loop: nullcontext()


def accelerator(size: int, _now_s: float) -> float:
    return 0.004 + 0.00025 * size


def browning_out(size: int, now_s: float) -> float:
    """Return the seconds of a batch on an accelerator that is half as fast for six seconds."""
    return accelerator(size, now_s) * (2 if 4 <= now_s < 10 else 1)


def on_time(
    contestant: Contestant,
    trace: Floats,
    limits: Floats | float,
    *,
    device: Device = accelerator,
    priorities: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """Return, for each request, whether its response came by its deadline.

    Args:
        contestant: the batcher.
        trace: arrivals, seconds, ascending.
        limits: seconds from arrival to deadline, one for each request or one for all.
        device: returns the seconds of a batch.
        priorities: each request's priority, lower is more urgent; ``None``: all are equal.
    """
    answered = np.zeros(len(trace), np.bool_)
    all_limits = np.broadcast_to(limits, trace.shape)

    async def main(loop: VirtualLoop) -> None:
        with contestant.patches(loop):
            await drive(loop)

    async def drive(loop: VirtualLoop) -> None:
        busy = asyncio.Lock()
        origin_s = 0.0

        async def infer(items: Sequence[Any]) -> Sequence[Any]:
            assert 0 < len(items) <= BATCH
            async with busy:
                await asyncio.sleep(device(len(items), loop.time() - origin_s))
            return list(items)

        ask = contestant.start(loop, infer)
        if contestant.warm_up:
            for _ in range(WARM_UP):
                await asyncio.gather(*(ask(number, loop.now_ns + 10**12, 0) for number in range(8)))
            origin_s = loop.time()

        async def request(number: int, deadline_ns: int) -> None:
            try:
                answer = await ask(number, deadline_ns, 0 if priorities is None else int(priorities[number]))
            except contestant.rejections:
                return
            answered[number] = answer == number and loop.now_ns <= deadline_ns

        waiting: set[asyncio.Task[None]] = set()
        failures: list[BaseException] = []

        def done(task: asyncio.Task[None]) -> None:
            waiting.discard(task)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                failures.append(error)

        for number, (at, limit) in enumerate(zip(trace + origin_s, all_limits, strict=True)):
            if at > loop.time():
                await asyncio.sleep(at - loop.time())
            task = asyncio.ensure_future(request(number, round((at + limit) * 1e9)))
            waiting.add(task)
            task.add_done_callback(done)
            if contestant.cancels:
                loop.call_at(at + limit, task.cancel)
        await asyncio.sleep(float(all_limits.max()) + 1e-6)  # a response after this is late
        loop.set_exception_handler(lambda _loop, _context: None)  # the end cancels tasks, which may raise
        if failures:
            raise failures[0]

    run(main)
    return answered


Measure = Callable[[Sequence[Contestant]], tuple[tuple[float, ...], Contestant]]
"""Returns the best figures of any contestant, and that contestant; all are one batcher under several settings."""


def best_share(figures: Callable[[Contestant], tuple[float, ...]]) -> Measure:
    """Return a measure of shares; the contestant with the best first share wins."""

    def measure(contestants: Sequence[Contestant]) -> tuple[tuple[float, ...], Contestant]:
        return max(((figures(one), one) for one in contestants), key=lambda found: found[0][0])

    return measure


def largest_rate(share: Callable[[float], float], capacity: float, at_least: float = 5.0) -> float:
    """Return the largest rate with 99 % on time, by bisection in nine steps from 5/s to 1.3 times the capacity.

    If ``at_least`` is above 5/s, it is the result unless the rate one step (a 512th of the range) higher has 99 %, too.
    """
    low, high = at_least, 1.3 * capacity
    step = (high - 5.0) / 2**9
    if low > 5.0:
        low += step
        if share(low) < 0.99:
            return at_least
    while high - low > 1.01 * step:
        middle = (low + high) / 2
        if share(middle) >= 0.99:
            low = middle
        else:
            high = middle
    return low


def best_goodput(slo_s: float) -> Measure:
    """Return a measure of goodput, as a share of capacity.

    Only settings that beat the best ones before them are measured in full.
    """

    def measure(contestants: Sequence[Contestant]) -> tuple[tuple[float, ...], Contestant]:
        rate, best = 5.0, contestants[0]
        for one in contestants:
            own = largest_rate(
                lambda rate, one=one: float(on_time(one, arrivals.poisson(rate, 6000, 1), slo_s).mean()),  # type: ignore[misc]
                CAPACITY,
                rate,
            )
            if own > rate:
                rate, best = own, one
        return (rate / CAPACITY,), best

    return measure


@dataclass(frozen=True)
class Row:
    """One line of the tables.

    Attributes:
        name: description of the measurement.
        cells: measures of the figures in the line, each of which finds its own best settings.
    """

    name: str
    cells: tuple[Measure, ...]


def _uniform(contestant: Contestant, trace: Floats, slo_s: float) -> tuple[float, ...]:
    return (float(on_time(contestant, trace, slo_s).mean()),)


def _mixed(contestant: Contestant, load: float) -> tuple[float, ...]:
    limits = np.where(np.random.default_rng(99).random(12_000) < 0.3, 0.025, 0.100)
    return (float(on_time(contestant, arrivals.poisson(load * CAPACITY, 12_000, 1), limits).mean()),)


def _brown_out(contestant: Contestant) -> tuple[float, ...]:
    trace = arrivals.poisson(0.6 * CAPACITY, int(0.6 * CAPACITY * 14), 1)
    answered = on_time(contestant, trace, 0.05, device=browning_out)
    return float(answered[(trace >= 4) & (trace < 10)].mean()), float(answered[trace >= 11].mean())


OVERLOAD = arrivals.poisson(1.2 * CAPACITY, 12_000, 1)
BURSTS = arrivals.bursts(0.5 * CAPACITY, 24_000, BURSTS_SEED)
ROWS = (
    Row(
        "goodput, share of capacity; SLO 25 / 50 / 100 ms",
        tuple(best_goodput(slo_s) for slo_s in SLOS),
    ),
    Row(
        "on time at 1.2× capacity; SLO 25 / 50 / 100 ms",
        tuple(best_share(lambda one, slo_s=slo_s: _uniform(one, OVERLOAD, slo_s)) for slo_s in SLOS),  # type: ignore[misc]
    ),
    Row(
        "bursts 10×, mean load 0.5, on time; SLO 25 / 50 / 100 ms",
        tuple(best_share(lambda one, slo_s=slo_s: _uniform(one, BURSTS, slo_s)) for slo_s in SLOS),  # type: ignore[misc]
    ),
    Row(
        "mixed, 30 % at 25 ms and 70 % at 100 ms, on time; 0.95× / 1.2×",
        tuple(best_share(lambda one, load=load: _mixed(one, load)) for load in (0.95, 1.2)),  # type: ignore[misc]
    ),
    Row(
        "device 2× slower for 6 s at load 0.6, SLO 50 ms: on time meanwhile / from 1 s after",
        (best_share(_brown_out),),
    ),
)


def measure_row(row: Row, contestants: Sequence[Contestant]) -> tuple[list[float], str]:
    """Return a row's values for one batcher, each under its best settings, and these settings in words."""
    found = [measure(contestants) for measure in row.cells]
    values = [value for cell, _ in found for value in cell]
    settings = [best.settings for _, best in found]
    return values, settings[0] if len(set(settings)) == 1 else " | ".join(settings)


def as_text(values: Sequence[float]) -> str:
    """Return the values of a row as text."""
    return " / ".join(f"{value:.3f}" for value in values)
