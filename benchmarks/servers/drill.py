"""A fault drill: requests at a steady rate while a server or its network breaks and is repaired, round after round.

Every request goes either to a router, with the server under test as its best route and a local second route, or to the
best route alone, which has no fallback. The drill records how and when each request ended, and whether the response was
right. *Ended* means without intervention: the drill cancels no request, and waits until after all deadlines.

*Late* is measured on the clock of the deadline. Because a shared machine stalls at times, a heartbeat on the same event
loop records how long this thread was ready to run and had no core (the kernel's ``schedstat``). The drill reports the
number of late requests, and how many of them were late by no more than that time plus the tolerance.
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
    """Settings of a drill.

    Attributes:
        rounds: how often the drill injects the fault.
        rate: requests per second, Poisson.
        timeout_s: timeout of each request.
        alone: share of the requests that go to the best route alone.
        calm_s: minimum seconds before each fault; the drill also waits for a response of the best route.
        recovery_s: maximum seconds until a fault, or its repair, has an effect.
        tolerance_s: seconds after its deadline from which a request is late.
        open_s: open time of the breaker, which may double once.
        in_a_row: number of consecutive responses of the best route that count as its full recovery.
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
    """End of one request.

    Attributes:
        stage: ``"calm"``, ``"fault"`` or ``"mended"``, when the request was sent.
        routed: true if the request went to the router, false if to the best route alone.
        deadline_ns: deadline of the request.
        ended_ns: when the request ended.
        how: the route that responded, or the class of the error.
        typed: true if the request ended with a response or with one of our errors.
        right: false if the request got a wrong response.
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
    """Resources that a process holds; a leak is one that it holds after a drill and did not hold before."""

    files: int
    threads: int
    shared_memory: frozenset[str]


@attrs.frozen
class Report:
    """Outcomes of the requests of all rounds.

    Attributes:
        fault: name of the fault.
        rounds: how often the drill injected it.
        endings: ends of all requests that ended.
        endless: number of requests that did not end.
        excused: number of late requests that the machine made late.
        mended_s: for each round, from the repair to the first response of the best route; infinite without one.
        full_s: likewise, to the first of the consecutive responses of the best route that count as full recovery.
        crashed: true if the server ended although every fault was repaired, because of a defect of its own.
        tasks: number of tasks left after everything was stopped.
        connections: number of connections to the network proxy that the backend left open.
        longest_gap_s: longest time for which the event loop did not run.
        tolerance_s: seconds after its deadline from which a request is late.
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
        """Requests that ended after the deadline plus the tolerance."""
        limit_ns = round(self.tolerance_s * 1e9)
        return [one for one in self.endings if one.ended_ns - one.deadline_ns > limit_ns]

    @property
    def latest_s(self) -> float:
        """Seconds by which the latest request missed its deadline; negative if all were on time."""
        return max((one.ended_ns - one.deadline_ns for one in self.endings), default=0) / 1e9

    def count(self, stage: str, *, routed: bool) -> Counter[str]:
        """Count the requests of a stage by how they ended."""
        return Counter(one.how for one in self.endings if one.stage == stage and one.routed is routed)


def held_now() -> Held:
    """Return the resources that this process holds.

    Shared memory means files of this process's own pools, whose names contain its process id: existing files, and
    deleted files that are still mapped. Other processes use the same folder at the same time.
    """
    gc.collect()
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.rpartition("/")[2].removesuffix(" (deleted)") for line in maps if f"{SHM}/" in line]
    names = [*mapped, *(path.name for path in SHM.iterdir())]
    shared = frozenset(name for name in names if f"-{os.getpid()}." in name)
    return Held(len(os.listdir("/proc/self/fd")), threading.active_count(), shared)  # noqa: PTH208 only counts them


class _Heartbeat:
    """Record of the time and of how long this thread has waited for a core, every 2 ms."""

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
        """Return the nanoseconds that the thread waited for a core between the beats around two instants."""
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
    """Inject and repair a fault, round after round, under load.

    Args:
        fault: fault to inject.
        server: server with the model ``mlp``; it works again when this returns.
        make_backend: returns the backend under test for ``host:port``, not started.
        plan: settings of the drill; ``None``: the defaults.
        protocol: protocol of the backend.
        seed: seed of the load and of the breaker.
    """
    plan = plan or Plan()
    before = asyncio.all_tasks()
    async with Rig(server, fault.way, protocol) as rig:
        breaker = CircuitBreaker(
            minimum_calls=4, window=8, open_s=plan.open_s, max_open_s=2 * plan.open_s, half_open_calls=1, seed=seed
        )
        # so small that batches are full as soon as anything is slow, and are pipelined
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
                # every deadline passes well within this timeout: a request that is still open then has no end
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
        # a busy machine may take longer to connect, so no fault is injected before the best route responds
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
    """Wait for both effects of a fault: the second route responds, and a request to the best route alone fails.

    A busy machine may run this process so seldom that the fault would be repaired before any request met it.
    """
    while time.monotonic_ns() <= give_up_ns:
        since = [one for one in load.endings[begun:] if one.stage == load.stage]
        if any(one.how == SECOND for one in since) and any(not one.routed and one.how != PRIMARY for one in since):
            return
        await asyncio.sleep(0.02)


async def _recovery(load: _Load, begun: int, give_up_ns: int, in_a_row: int) -> tuple[float, float]:
    """Return when the best route first responded to a routed request, and when `in_a_row` such responses began.

    An instant is infinite if it did not come before ``give_up_ns``.
    """
    stage = load.stage
    while True:
        since = [one for one in load.endings[begun:] if one.routed and one.stage == stage]
        first = next((one.ended_ns for one in since if one.how == PRIMARY), float("inf"))
        if len(since) > in_a_row and all(one.how == PRIMARY for one in since[-in_a_row:]):
            return first, since[-in_a_row].ended_ns
        if time.monotonic_ns() > give_up_ns:
            return first, float("inf")
        await asyncio.sleep(0.02)
