"""Simulation of a fleet of replicas and routers: thousands of replicas in one process, with the router's own ranking.

A replica is a batch server: a batch of ``n`` takes ``slowness × (setup_s + n × row_s)``, with noise. The queue is in
order of deadlines, and a replica drops a request that cannot be on time when its turn comes. Each router knows its own
requests at once, and gets the report of each replica after a delay.
"""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Literal

import attrs

from streaminfer.serving.ray.headroom import SAMPLE, HeadroomRanking, LoadReport

Choice = Literal["headroom", "queue length", "random"]


@attrs.frozen(kw_only=True)
class Fleet:
    """Settings of a simulation.

    Attributes:
        slowness: slowness of each replica; 1.0 is the base speed.
        load: offered requests over the capacity of all replicas in full batches.
        routers: number of routers; each gets an equal share of the requests.
        slo_s: seconds from arrival to deadline; each request draws one of these.
        seconds: duration of the arrivals.
        report_every_s: seconds between two reports of a replica.
        report_age_s: age of a report when a router gets it.
        killed: replicas that die at half time; requests in flight there are lost.
    """

    slowness: Sequence[float]
    load: float = 0.8
    routers: int = 1
    slo_s: Sequence[float] = (0.1,)
    seconds: float = 4.0
    setup_s: float = 0.004
    row_s: float = 0.002
    max_batch: int = 8
    noise: float = 0.1
    report_every_s: float = 0.2
    report_age_s: float = 0.15
    killed: int = 0
    sample: int = SAMPLE

    @property
    def capacity_per_s(self) -> float:
        """Requests per second of all replicas in full batches."""
        batch_s = self.setup_s + self.max_batch * self.row_s
        return sum(self.max_batch / (batch_s * slow) for slow in self.slowness)


@attrs.define
class _Replica:
    number: int
    slow: float
    queue: list[tuple[float, int, float, int]] = attrs.Factory(list)  # deadline, sequence, arrival, router
    running: int = 0
    alive: bool = True
    row_s: float = 0.0
    service_s: float = 0.0

    @property
    def in_flight(self) -> int:
        return len(self.queue) + self.running


@attrs.frozen
class Result:
    """Shares of all requests, and the 99th percentile of the latency in seconds."""

    on_time: float
    lost: float
    p99_s: float
    requests: int


class _Router:
    def __init__(self, fleet: Fleet, choice: Choice, seed: int) -> None:
        self.ranking: HeadroomRanking[int] = HeadroomRanking(fleet.sample, seed)
        self.choice = choice
        self.rng = random.Random(seed)

    def choose(self) -> int:
        ranking = self.ranking
        if self.choice == "headroom":
            return ranking.rank()[0]
        if self.choice == "random":
            return self.rng.choice(ranking.candidates)
        two = self.rng.sample(ranking.candidates, min(2, len(ranking.candidates)))
        return min(two, key=lambda number: ranking.loads[number].in_flight)


def simulate(fleet: Fleet, choice: Choice, seed: int = 0) -> Result:
    """Simulate a fleet whose routers choose replicas in one way."""
    rng = random.Random(seed)
    replicas = [_Replica(number, slow) for number, slow in enumerate(fleet.slowness)]
    routers = [_Router(fleet, choice, seed * 1000 + number) for number in range(fleet.routers)]
    events: list[tuple[float, int, Callable[[float], None]]] = []
    order = itertools.count()
    latencies: list[float] = []
    counts = {"all": 0, "on_time": 0, "lost": 0}

    def at(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(order), what))

    def start(replica: _Replica, now: float) -> None:
        fastest_s = replica.slow * (fleet.setup_s + fleet.row_s)
        batch: list[tuple[float, int, float, int]] = []
        while replica.queue and len(batch) < fleet.max_batch:
            one = heapq.heappop(replica.queue)
            if one[0] < now + fastest_s:
                routers[one[3]].ranking.complete(replica.number)
            else:
                batch.append(one)
        if not batch:
            return
        took = replica.slow * (fleet.setup_s + fleet.row_s * len(batch)) * rng.lognormvariate(0.0, fleet.noise)
        replica.running = len(batch)
        weight = 0.2
        replica.row_s += (took / len(batch) - replica.row_s) * (weight if replica.row_s else 1.0)
        replica.service_s += (took - replica.service_s) * (weight if replica.service_s else 1.0)

        def end(then: float) -> None:
            if not replica.alive:
                return
            replica.running = 0
            for deadline, _, arrival, router in batch:
                routers[router].ranking.complete(replica.number)
                latencies.append(then - arrival)
                counts["on_time"] += then <= deadline
            start(replica, then)

        at(now + took, end)

    def arrive(now: float) -> None:
        counts["all"] += 1
        router = rng.randrange(fleet.routers)
        left = rng.choice(fleet.slo_s)
        number = routers[router].choose()
        routers[router].ranking.send(number)
        replica = replicas[number]
        if not replica.alive:
            counts["lost"] += 1
            return
        heapq.heappush(replica.queue, (now + left, next(order), now, router))
        if not replica.running:
            start(replica, now)
        # with its reply to a request, a replica reports its requests in flight
        routers[router].ranking.observe(number, replica.in_flight)

    def arrivals(now: float) -> None:
        arrive(now)
        following = now + rng.expovariate(rate)
        if following < fleet.seconds:
            at(following, arrivals)

    def report(now: float) -> None:
        """Collect the reports of the living replicas, as the controller does; routers get them later."""
        for replica in replicas:
            if replica.alive:
                service_s = replica.service_s or replica.slow * (fleet.setup_s + fleet.row_s)
                reports[replica.number] = LoadReport(next(order), service_s, replica.row_s, replica.in_flight)
        heard = dict(reports)

        def hear(then: float) -> None:
            for router in routers:
                router.ranking.update(heard, round(then * 1e9))

        at(now + fleet.report_age_s, hear)
        if now < fleet.seconds:
            at(now + fleet.report_every_s, report)

    def kill(_: float) -> None:
        for replica in rng.sample(replicas, fleet.killed):
            replica.alive = False
            counts["lost"] += replica.in_flight

    rate = fleet.load * fleet.capacity_per_s
    reports: dict[int, LoadReport | None] = dict.fromkeys(range(len(replicas)))
    for router in routers:
        router.ranking.update(reports, 0)
    at(0.0, report)
    at(rng.expovariate(rate), arrivals)
    if fleet.killed:
        at(fleet.seconds / 2, kill)
    while events:
        now, _, what = heapq.heappop(events)
        what(now)
    latencies.sort()
    p99 = latencies[int(0.99 * (len(latencies) - 1))] if latencies else float("nan")
    return Result(counts["on_time"] / counts["all"], counts["lost"] / counts["all"], p99, counts["all"])
