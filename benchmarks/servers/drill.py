"""A fault drill: requests at a steady rate while a server or its network breaks and is repaired, round after round.

Every request goes either to a router, with the server under test as its best route and a local second route, or to the
best route alone, which has no fallback. The drill records how and when each request ended, and whether the response was
right. *Ended* means without intervention: the drill waits for every request that it sent.

*Late* is measured on the clock of the deadline. A shared machine itself stalls now and then. A heartbeat on the same
event loop records how long this thread was ready to run and had no core (the kernel's ``schedstat``). The drill counts
requests separately that were late by no more than that time plus the tolerance; it reports both numbers.
"""

import asyncio
import gc
import os
import random
import threading
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import streaminfer as si
from servers.faults import Fault, Protocol, Rig
from servers.mlp import mlp_answers
from servers.process import SHM
from servers.triton_server import TritonServer
from streaminfer.resilience import CircuitBreaker
from streaminfer.routing import FallbackRouter, Route

__all__ = ["Ending", "Held", "Plan", "Report", "drill", "held_now"]

MS = 1_000_000
PRIMARY, SECOND = "triton", "local"
MakeBackend = Callable[[str], Any]


@attrs.frozen
class Plan:
    """How a drill is held.

    Attributes:
        rounds: how often the fault strikes.
        rate: requests a second, Poisson.
        timeout_s: the time limit of each.
        alone: the share of requests that go to the best route alone.
        calm_s: before each strike, at least: the best route has answered by then.
        recovery_s: the longest that a fault, or its mending, may take to show.
        tolerance_s: what is not late yet.
        open_s: the breaker's; it doubles up to twice as much.
        in_a_row: so many answers of the best route, one after the other, count as all.
    """

    rounds: int = 1
    rate: float = 150.0
    timeout_s: float = 0.15
    alone: float = 0.25
    calm_s: float = 0.2
    recovery_s: float = 15.0
    tolerance_s: float = 0.02
    open_s: float = 0.2
    in_a_row: int = 30


@attrs.frozen
class Ending:
    """How a request ended.

    Attributes:
        stage: ``"calm"``, ``"fault"`` or ``"mended"``, when it was asked.
        routed: it went to the router.
        deadline_ns: when it should have ended.
        ended_ns: when it did.
        how: the route that answered, or the class of the error.
        typed: it was an answer, or one of our errors.
        right: the answer was; true where there was none.
    """

    stage: str
    routed: bool
    deadline_ns: int
    ended_ns: int
    how: str
    typed: bool
    right: bool


@attrs.frozen
class Held:
    """What a process holds: a leak is what is there afterwards and was not before."""

    files: int
    threads: int
    shared_memory: frozenset[str]


@attrs.frozen
class Report:
    """What became of the requests of all rounds.

    Attributes:
        fault: what struck.
        rounds: how often.
        endings: of every request that ended.
        endless: requests that did not.
        excused: of the late ones, those that the machine made late.
        mended_s: for each round, from the mending to the first answer of the best route; infinite where none came.
        full_s: likewise, to the instant since when the best route answers all requests.
        crashed: the server has ended, though every fault was mended: of a defect of its own.
        tasks: tasks left when everything was stopped.
        connections: of the network proxy, left by the backend.
        longest_gap_s: for which the event loop did not run at all.
        tolerance_s: what is not late yet.
    """

    fault: str
    rounds: int
    endings: Sequence[Ending] = attrs.field(repr=False)
    endless: int
    excused: int
    mended_s: Sequence[float]
    full_s: Sequence[float]
    crashed: bool
    tasks: int
    connections: int
    longest_gap_s: float
    tolerance_s: float

    @property
    def late(self) -> Sequence[Ending]:
        """Later than the deadline and the tolerance."""
        limit_ns = round(self.tolerance_s * 1e9)
        return [one for one in self.endings if one.ended_ns - one.deadline_ns > limit_ns]

    @property
    def latest_s(self) -> float:
        """By how much the latest one missed its deadline; negative where all were on time."""
        return max((one.ended_ns - one.deadline_ns for one in self.endings), default=0) / 1e9

    def count(self, stage: str, *, routed: bool) -> Counter[str]:
        """How the requests of a stage ended."""
        return Counter(one.how for one in self.endings if one.stage == stage and one.routed is routed)


def held_now() -> Held:
    """What this process holds now.

    Shared memory is what its own pools made, known by the process's number in their names: those that are still there,
    and those of the memory that is mapped, which has none any more. Others use the same folder at the same time.
    """
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.rpartition("/")[2].removesuffix(" (deleted)") for line in maps if f"{SHM}/" in line]
    names = [*mapped, *(path.name for path in SHM.iterdir())]
    shared = frozenset(name for name in names if f"-{os.getpid()}." in name)
    return Held(len(os.listdir("/proc/self/fd")), threading.active_count(), shared)  # noqa: PTH208 the loop is not running


class _Heartbeat:
    """Looks every 2 ms at the clock and at how long this thread has waited for a core."""

    def __init__(self) -> None:
        self._instants: list[int] = []
        self._waits: list[int] = []
        self._file = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)

    async def run(self) -> None:
        try:
            while True:
                self._instants.append(time.monotonic_ns())
                self._waits.append(int(os.pread(self._file, 100, 0).split()[1]))
                await asyncio.sleep(0.002)
        finally:
            os.close(self._file)

    def waited_ns(self, from_ns: int, to_ns: int) -> int:
        """How long the thread waited for a core between the beats around two instants."""
        first = max(bisect_right(self._instants, from_ns) - 1, 0)
        last = min(bisect_left(self._instants, to_ns), len(self._waits) - 1)
        return self._waits[last] - self._waits[first]

    def longest_gap_s(self) -> float:
        return float(np.diff(self._instants).max(initial=0)) / 1e9


class _Load:
    """Poisson arrivals, each a task that ends with an entry in ``endings``."""

    def __init__(self, plan: Plan, routed: Any, alone: Any, seed: int) -> None:
        self._plan = plan
        self._routed = routed
        self._alone = alone
        self._random = random.Random(seed)
        self._inputs = np.random.default_rng(seed).normal(size=(512, 8)).astype(np.float32)
        self._expected = mlp_answers(self._inputs)
        self.stage = "calm"
        self.endings: list[Ending] = []
        self.open: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        due = time.monotonic()
        while True:
            due += self._random.expovariate(self._plan.rate)
            await asyncio.sleep(max(due - time.monotonic(), 0))
            task = asyncio.create_task(self._ask(self._random.random() >= self._plan.alone))
            self.open.add(task)
            task.add_done_callback(self.open.discard)

    async def _ask(self, routed: bool) -> None:
        which = self._random.randrange(len(self._inputs))
        stage = self.stage
        deadline_ns = time.monotonic_ns() + round(self._plan.timeout_s * 1e9)
        service = self._routed if routed else self._alone
        typed = right = True
        try:
            response = await service.call(si.Request(self._inputs[which], deadline_ns=deadline_ns))
        except Exception as error:
            ended_ns = time.monotonic_ns()
            how, typed = type(error).__name__, isinstance(error, si.StreamInferError)
        else:
            ended_ns = time.monotonic_ns()
            how = (response.source or PRIMARY).partition(" ")[0]
            right = np.shape(response.outputs) == (4,) and np.allclose(
                response.outputs, self._expected[which], rtol=1e-4, atol=1e-5
            )
        self.endings.append(Ending(stage, routed, deadline_ns, ended_ns, how, typed, right))


async def drill(
    fault: Fault,
    server: TritonServer,
    make_backend: MakeBackend,
    plan: Plan | None = None,
    *,
    protocol: Protocol = "grpc",
    seed: int = 1,
) -> Report:
    """Lets a fault strike, round after round, under load.

    Args:
        fault: what strikes.
        server: with the model ``mlp``; as it was when this returns.
        make_backend: the backend under test for ``host:port``, not started.
        plan: how it is held.
        protocol: what the backend speaks.
        seed: of the load.
    """
    plan = plan or Plan()
    before = asyncio.all_tasks()
    async with Rig(server, fault.way, protocol) as rig:
        breaker = CircuitBreaker(
            minimum_calls=4, window=8, open_s=plan.open_s, max_open_s=2 * plan.open_s, half_open_calls=1, seed=seed
        )
        # so small that batches are full as soon as something is slow, and are sent ahead
        batcher = si.AdaptiveBatcher(max_batch_size=2, slo_s=plan.timeout_s)
        alone = si.Stack(batcher, breaker, make_backend(rig.url))
        local = [si.AdaptiveBatcher(max_batch_size=16, slo_s=plan.timeout_s), si.CpuBackend(mlp_answers)]
        router = FallbackRouter(
            Route(PRIMARY, alone, quality=1.0, cost=2.0, device="server"),
            Route(SECOND, local, quality=0.5, cost=1.0, device="here"),
        )
        async with si.Stack(router) as routed:
            load = _Load(plan, routed, alone, seed)
            heart = _Heartbeat()
            running = [asyncio.create_task(heart.run()), asyncio.create_task(load.run())]
            try:
                mended_s, full_s = await _rounds(fault, rig, load, plan)
            finally:
                running[1].cancel()
                # every deadline has passed long before: what is still open then has no end
                ended = await asyncio.wait(load.open, timeout=plan.timeout_s + 2.0) if load.open else (set(), set())
                endless = len(ended[1])
                running[0].cancel()
                await asyncio.gather(*running, return_exceptions=True)
        connections = await rig.connections_left()
    await asyncio.sleep(0)
    tolerance_ns = round(plan.tolerance_s * 1e9)
    excused = 0
    for one in load.endings:
        over_ns = one.ended_ns - one.deadline_ns
        if over_ns > tolerance_ns and over_ns - heart.waited_ns(one.deadline_ns, one.ended_ns) <= tolerance_ns:
            excused += 1
    return Report(
        fault=fault.name,
        rounds=plan.rounds,
        endings=load.endings,
        endless=endless,
        excused=excused,
        mended_s=mended_s,
        full_s=full_s,
        crashed=not server.running,
        tasks=len(asyncio.all_tasks() - before),
        connections=connections,
        longest_gap_s=heart.longest_gap_s(),
        tolerance_s=plan.tolerance_s,
    )


async def _rounds(fault: Fault, rig: Rig, load: _Load, plan: Plan) -> tuple[list[float], list[float]]:
    mended_s, full_s = [], []
    for _ in range(plan.rounds):
        load.stage, begun = "calm", len(load.endings)
        await asyncio.sleep(plan.calm_s)
        # a busy machine may take longer to connect: nothing breaks before the best route answers
        await _recovery(load, begun, time.monotonic_ns() + round(plan.recovery_s * 1e9), 1)
        load.stage, begun = "fault", len(load.endings)
        await fault.strike(rig)
        await asyncio.sleep(fault.lasts_s)
        if not fault.is_gentle:
            await _effect(load, begun, time.monotonic_ns() + round(plan.recovery_s * 1e9))
        await fault.mend(rig)
        load.stage = "mended"
        mended_ns, begun = time.monotonic_ns(), len(load.endings)
        first, full = await _recovery(load, begun, mended_ns + round(plan.recovery_s * 1e9), plan.in_a_row)
        mended_s.append((first - mended_ns) / 1e9)
        full_s.append((full - mended_ns) / 1e9)
    return mended_s, full_s


async def _effect(load: _Load, begun: int, give_up_ns: int) -> None:
    """Wait until a fault has shown both ways: the second route answered, and a request of the best one alone failed.

    A busy machine may let this process run so seldom that a fault would be mended before any request met it.
    """
    while time.monotonic_ns() <= give_up_ns:
        since = [one for one in load.endings[begun:] if one.stage == load.stage]
        if any(one.how == SECOND for one in since) and any(not one.routed and one.how != PRIMARY for one in since):
            return
        await asyncio.sleep(0.02)


async def _recovery(load: _Load, begun: int, give_up_ns: int, in_a_row: int) -> tuple[float, float]:
    """When the best route gave its first answer since, and since when it gives all; looks at routed requests."""
    stage = load.stage
    while True:
        since = [one for one in load.endings[begun:] if one.routed and one.stage == stage]
        first = next((one.ended_ns for one in since if one.how == PRIMARY), float("inf"))
        if len(since) > in_a_row and all(one.how == PRIMARY for one in since[-in_a_row:]):
            return first, since[-in_a_row].ended_ns
        if time.monotonic_ns() > give_up_ns:
            return first, float("inf")
        await asyncio.sleep(0.02)
