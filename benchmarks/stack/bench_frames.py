"""Coroutine frames, tasks and CPU per request, from a minimal batcher to the whole stack.

    python benchmarks/run.py frames [--rounds 9]

Frames and tasks are counted once, for one request alone: every coroutine that Python code enters, every compiled one
that is alive while the model runs, and every task in which one of them runs. CPU is measured with 64 callers in a
closed loop, over the minimal batcher in the same round; the benchmark prints the median of the rounds.
"""

import argparse
import asyncio
import functools
import gc
import inspect
import itertools
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import CoroutineType, FrameType
from typing import Any, Literal, NamedTuple

from _lib.figures import Figure
from _lib.floor import MinimalBatcher, cpu_per_request, no_op

import streaminfer as si

BATCH = 64
CALLERS = 64
REQUESTS = 64 * 200
MINIMAL, BATCHER, BATCHED = "minimal batcher", "batcher", "batcher and backend"
ADDED, ROUTED = "telemetry, limit, batcher, breaker", "telemetry, router, limit, batcher, breaker"
FULL = "full stack, cached miss"
MISS_FRAMES = Figure("coroutine frames of a cached miss through the full stack", form="{:.0f}", at_most=9)
MISS_TASKS = Figure("tasks of a cached miss through the full stack", form="{:.0f}", at_most=1)
FRAMES = Figure("coroutine frames of a request", form="{:.0f}")
TASKS = Figure("tasks of a request", form="{:.0f}")
BATCHER_CPU = Figure("CPU of a request through a batcher, 64 callers", over="a minimal asyncio batcher", at_most=1.3)
BATCHED_CPU = Figure(
    "CPU of a request through batcher and backend, 64 callers", over="a minimal asyncio batcher", at_most=1.7
)
STACK_CPU = Figure("CPU of a request through a stack, 64 callers", over="a minimal asyncio batcher")
CPU = {BATCHER: (BATCHER_CPU, ""), BATCHED: (BATCHED_CPU, ""), ADDED: (STACK_CPU, ADDED), ROUTED: (STACK_CPU, ROUTED)}

Call = Callable[[Any], Awaitable[Any]]


class Counted(NamedTuple):
    """Coroutine frames and tasks of one request."""

    frames: int
    tasks: int


class FrameCounter:
    """Counter of coroutines and their tasks from ``start`` to ``stop``; keeps the frames, so that no id is reused."""

    def __init__(self) -> None:
        self.frames: dict[int, FrameType] = {}
        self.tasks: set[asyncio.Task[Any] | None] = set()
        self.compiled: set[int] = set()

    def start(self) -> None:
        self.own = asyncio.current_task()
        self.compiled_before = _compiled_coroutines()
        sys.setprofile(self._on_call)

    def stop(self) -> Counted:
        sys.setprofile(None)
        return Counted(len(self.frames) + len(self.compiled), len(self.tasks - {self.own, None}))

    def look(self) -> None:
        """Count the compiled coroutines that are alive now."""
        self.compiled |= _compiled_coroutines() - self.compiled_before

    def _on_call(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_COROUTINE and code not in OWN:
            self.frames[id(frame)] = frame
            self.tasks.add(asyncio.current_task())


def _compiled_coroutines() -> set[int]:
    return {id(it) for it in gc.get_objects() if type(it).__name__ == "coroutine" and type(it) is not CoroutineType}


counter: FrameCounter | None = None


def model(items: Any) -> Any:
    """Return the items, as a batch function that costs nothing."""
    if counter is not None:
        counter.look()
    return items


@asynccontextmanager
async def minimal() -> AsyncIterator[Call]:
    yield MinimalBatcher(model, BATCH)


@asynccontextmanager
async def batcher() -> AsyncIterator[Call]:
    yield si.AdaptiveBatcher(max_batch_size=BATCH, max_queue_size=4096, stack=False).wrap(model)


def stack(make_layers: Callable[[], list[Any]], *, repeats: bool = True) -> Callable[[], Any]:
    """Return a maker of a stack; with ``repeats``, all requests have the same inputs, so that a cache hits."""

    @asynccontextmanager
    async def make() -> AsyncIterator[Call]:
        numbers = itertools.count()
        async with si.Stack(*make_layers()) as service:
            yield service if repeats else lambda _: service(float(next(numbers)))

    return make


def batched() -> list[Any]:
    return [si.AdaptiveBatcher(max_batch_size=BATCH, stack=False), si.CpuBackend(model, executor="inline")]


def protected(executor: Literal["inline", "thread"] = "inline") -> list[Any]:
    batcher = si.AdaptiveBatcher(max_batch_size=BATCH, stack=False)
    return [si.ConcurrencyLimit(limit=1024), batcher, si.CircuitBreaker(), si.CpuBackend(model, executor=executor)]


def routed(executor: Literal["inline", "thread"] = "inline") -> list[Any]:
    return [si.Telemetry("bench"), si.FallbackRouter(si.Route("full", protected(executor)))]


def full(executor: Literal["inline", "thread"] = "inline") -> list[Any]:
    telemetry, router = routed(executor)
    return [telemetry, si.EdgeCache(maxsize=1024), router]


VARIANTS: dict[str, Callable[[], AbstractAsyncContextManager[Call]]] = {
    MINIMAL: minimal,
    BATCHER: batcher,
    BATCHED: stack(batched),
    ADDED: stack(lambda: [si.Telemetry("bench"), *protected()]),
    ROUTED: stack(routed),
    FULL: stack(full, repeats=False),
    "full stack, cached miss, model in a thread": stack(functools.partial(full, "thread"), repeats=False),
    "full stack, hit": stack(full),
}
"""All but the first two are stacks; the full one is telemetry, cache, router and, in its route, limit, batcher, breaker
and backend."""


async def count(make: Callable[[], AbstractAsyncContextManager[Call]]) -> Counted:
    """Count the coroutine frames and tasks of one request alone, after three earlier requests."""
    global counter  # noqa: PLW0603 - the model is one function for all variants
    async with make() as call:
        for _ in range(3):
            await call(1.0)
            await asyncio.sleep(0)
        counted = FrameCounter()
        counter = counted
        try:
            counted.start()
            await call(1.0)
            await asyncio.sleep(0)  # the batch's task may end after its requests
            return counted.stop()
        finally:
            counter = None


OWN = {count.__code__, asyncio.sleep.__code__}
"""Code of the coroutines that count, which are not counted."""


async def measure(make: Callable[[], AbstractAsyncContextManager[Call]]) -> float:
    async with make() as call:
        gc.collect()
        return await cpu_per_request(call, CALLERS, REQUESTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    si.warmup()
    gc.collect()
    gc.freeze()
    assert no_op(1) == model(1)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(rounds):
        for name, make in VARIANTS.items():
            seconds[name].append(asyncio.run(measure(make)))
    gc.unfreeze()
    print(f"{'':44}{'frames':>8}{'tasks':>8}{'CPU µs':>9}  over the minimal batcher, {CALLERS} callers")
    counts = {name: asyncio.run(count(make)) for name, make in VARIANTS.items()}
    ratios = {
        name: [ours / floor for ours, floor in zip(values, seconds[MINIMAL], strict=True)]
        for name, values in seconds.items()
    }
    for name, (frames, tasks) in counts.items():
        took = f"{statistics.median(seconds[name]) * 1e6:9.2f}  {statistics.median(ratios[name]):.2f}×"
        print(f"{name:44}{frames:8}{tasks:8}{took}")
    report(counts, ratios)


def report(counts: dict[str, Counted], ratios: dict[str, list[float]]) -> None:
    frames, tasks = counts[FULL]
    MISS_FRAMES.report(frames)
    MISS_TASKS.report(tasks)
    for name, (frames, tasks) in counts.items():
        if name != FULL:
            FRAMES.report(frames, case=name)
            TASKS.report(tasks, case=name)
    for name, (figure, case) in CPU.items():
        figure.report(ratios[name], case=case)


if __name__ == "__main__":
    main()
