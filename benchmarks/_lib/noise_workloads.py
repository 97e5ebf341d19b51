"""Workloads that are hard for a batcher: noise, outages, classes, shapes, deadlines, real arrivals; in virtual time.

The live batcher serves them around a scripted device. ``bench_noise.py`` prints the default policy beside two simple
policies in the same batcher: greedy, and early drop (Shen et al., SOSP 2019), which knows the true mean service time.
With classes, early drop serves the more urgent class first.
"""

import asyncio
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

import streaminfer as si
from streaminfer.batching import Decision, PolicyName
from streaminfer.batching.batched_service import BatchedService
from streaminfer.request import Batch
from streaminfer.simulation import arrivals
from streaminfer.testing import VirtualLoop, run

Floats = NDArray[np.float64]
Service = Callable[[int], float]
"""Mean seconds of a batch, by its size."""
NEVER_NS = 2**63 - 1
GRACE_S = 12.0
"""Time after the last arrival within which a request without a deadline can still complete."""


def line(setup_ms: float, per_item_ms: float) -> Service:
    return lambda size: (setup_ms + per_item_ms * size) / 1e3


def faster(service: Service, times: float) -> Service:
    return lambda size: service(size) / times


def filled_up(setup_ms: float, tile_ms: float, tile: int) -> Service:
    """Return the service time of a model that computes whole tiles of ``tile`` rows."""
    return lambda size: (setup_ms + tile_ms * -(-size // tile)) / 1e3


@attrs.frozen
class Noise:
    """Random scatter of the durations of batches.

    Attributes:
        sigma: standard deviation of the logarithm.
        outliers: share of batches that take ``times`` as long.
        times: see ``outliers``.
    """

    sigma: float = 0.0
    outliers: float = 0.0
    times: float = 3.0

    def mean(self) -> float:
        return float(np.exp(self.sigma**2 / 2)) * (1 + self.outliers * (self.times - 1))

    def draw(self, rng: np.random.Generator) -> float:
        factor = float(np.exp(self.sigma * rng.standard_normal()))
        return factor * self.times if rng.random() < self.outliers else factor


@attrs.frozen
class Workload:
    """One row of the table.

    Attributes:
        name: description of the row.
        family: name of the group of rows that are counted together.
        service: seconds of a batch without noise, by its size.
        cap: the most rows in a batch.
        slo_s: seconds from a request's arrival to its deadline, if there is no ``limits_s``.
        trace: returns the arrivals in seconds, given a seed.
        noise: noise of the durations.
        priorities: returns each request's priority, given the trace and a seed.
        limits_s: returns each request's seconds from arrival to deadline, given the trace and a seed; infinite: the
            request has no deadline.
        shapes: number of input shapes, which cannot share a batch.
        workers: number of batches that run at once.
        slower: returns the factor by which the device is slower, given the instant in seconds.
        measured: returns which requests of the trace count.
    """

    name: str
    family: str
    service: Service
    cap: int
    slo_s: float
    trace: Callable[[int], Floats]
    noise: Noise = Noise()
    priorities: Callable[[Floats, int], NDArray[np.int64]] | None = None
    limits_s: Callable[[Floats, int], Floats] | None = None
    shapes: int = 1
    workers: int = 1
    slower: Callable[[float], float] | None = None
    measured: Callable[[Floats], NDArray[np.bool_]] | None = None

    @property
    def capacity(self) -> float:
        """Requests per second in full batches."""
        return self.workers * self.cap / (self.service(self.cap) * self.noise.mean())


@attrs.frozen
class Served:
    """Outcome of a trace.

    Attributes:
        on_time: shape (n,), whether a response came by the deadline; without a deadline, within ten seconds.
        trace: shape (n,), arrivals in seconds.
        priorities: shape (n,), priority of each request.
        batches: number of released batches.
        batch_size: mean size of the batches.
    """

    on_time: NDArray[np.bool_]
    trace: Floats
    priorities: NDArray[np.int64]
    batches: int
    batch_size: float


class EarlyDrop:
    """Policy that serves by priority, then by arrival, in the largest batch that requests on time can fill.

    Requests that would be late in that batch are passed over; requests that would be late even alone are dropped.
    """

    def __init__(self, workload: Workload) -> None:
        mean = workload.noise.mean()
        self._cap = workload.cap
        self._takes_ns = [round(workload.service(max(size, 1)) * mean * 1e9) for size in range(workload.cap + 1)]

    def decide(self, queue: Any, now_ns: int, free_workers: int) -> Decision:  # noqa: ARG002 - the protocol
        tickets = queue.first(queue.queued)
        late = [one for one in tickets if one.deadline_ns < now_ns + self._takes_ns[1]]
        if late:
            dropped = set(map(id, late))
            tickets = [one for one in tickets if id(one) not in dropped]
        batch: list[Any] = []
        for size in range(min(len(tickets), self._cap), 0, -1):
            finish_ns = now_ns + self._takes_ns[size]
            batch = [one for one in tickets if one.deadline_ns >= finish_ns][:size]
            if len(batch) == size or size == 1:
                break
        return Decision(batch, "planned" if batch else "", late)


class Device:
    """Scripted device that runs the batches."""

    def __init__(self, workload: Workload, seed: int, loop: VirtualLoop) -> None:
        self._workload = workload
        self._rng = np.random.default_rng(seed + 1000)
        self._loop = loop
        self._free = asyncio.Semaphore(workload.workers)

    async def infer(self, batch: Batch) -> Any:
        workload = self._workload
        async with self._free:
            takes_s = workload.service(len(batch.rows)) * workload.noise.draw(self._rng)
            if workload.slower is not None:
                takes_s *= workload.slower(self._loop.now_ns / 1e9)
            _ = batch.inputs
            await asyncio.sleep(takes_s)
        return [None] * len(batch.rows)


def serve(workload: Workload, policy: PolicyName | Literal["early_drop"], seed: int) -> Served:
    """Serve a workload, and return the outcome.

    Args:
        workload: the row.
        policy: ``"lookahead"``, ``"greedy"`` or ``"early_drop"``.
        seed: seed of the trace and the noise.
    """
    trace = workload.trace(seed)
    n = len(trace)
    limits = np.full(n, workload.slo_s) if workload.limits_s is None else workload.limits_s(trace, seed)
    priorities = np.zeros(n, np.int64) if workload.priorities is None else workload.priorities(trace, seed)
    inputs = [np.zeros(1 + shape, np.float32) for shape in range(workload.shapes)]
    shapes = np.random.default_rng(seed + 2000).integers(0, workload.shapes, n).tolist()
    completes_ns = np.full(n, NEVER_NS)
    known: dict[str, Any] = {}

    async def main(loop: VirtualLoop) -> None:
        device = Device(workload, seed, loop)
        batcher = si.AdaptiveBatcher(
            max_batch_size=workload.cap,
            max_queue_size=10**6 if np.isfinite(limits).all() else 4096,
            max_in_flight=workload.workers,
            policy="greedy" if policy == "early_drop" else policy,
            clock=loop.clock,
        )
        service: BatchedService = batcher.wrap(device)
        if policy == "early_drop":
            service.change(None, workload.cap, EarlyDrop(workload), service._calls.assembler)

        def note(number: int) -> Callable[[asyncio.Future[Any]], None]:
            def done(future: asyncio.Future[Any]) -> None:
                if future.exception() is None:
                    completes_ns[number] = loop.now_ns

            return done

        for number, (at, limit, priority) in enumerate(
            zip(trace.tolist(), limits.tolist(), priorities.tolist(), strict=True)
        ):
            wait_s = at - loop.time()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            deadline_ns = None if limit == np.inf else round((at + limit) * 1e9)
            try:
                ticket = service.submit(None, inputs[shapes[number]], deadline_ns, priority)
            except si.StreamInferError:
                continue
            ticket.future.add_done_callback(note(number))
        finite = limits[np.isfinite(limits)]
        await asyncio.sleep((float(finite.max()) if finite.size else 0.0) + (0.01 if finite.size == n else GRACE_S))
        known["statistics"] = service.statistics()
        await service.stop(drain=False)

    run(main)
    statistics = known["statistics"]
    patience = np.where(np.isfinite(limits), limits, 10.0)
    on_time = completes_ns <= np.rint((trace + patience) * 1e9)
    rows = sum(size * count for size, count in statistics.batch_sizes.items())
    return Served(on_time, trace, priorities, statistics.batches, rows / max(statistics.batches, 1))


def share(workload: Workload, served: Sequence[Served], priority: int | None = None) -> float:
    """Return the share on time of the requests that count, of one priority or of all."""
    good = total = 0
    for one in served:
        mask = np.ones(len(one.trace), np.bool_) if workload.measured is None else workload.measured(one.trace)
        if priority is not None:
            mask &= one.priorities == priority
        good += int(one.on_time[mask].sum())
        total += int(mask.sum())
    return good / max(total, 1)


def poisson_at(load: float, n: int, capacity: float) -> Callable[[int], Floats]:
    return lambda seed: arrivals.poisson(load * capacity, n, seed)


def _recorded(name: str) -> Floats | None:
    folder = os.environ.get("STREAMINFER_TRACES")
    if folder is None:
        return None
    trace = np.load(Path(folder) / name)["t"]
    return arrivals.replay(trace)


def rows(n: int = 4000) -> list[Workload]:
    """Return all workloads; most of them have ``n`` requests."""
    made: list[Workload] = []

    def add(name: str, family: str, service: Service, cap: int, slo_s: float, load: float, **more: Any) -> None:
        noise = more.get("noise", Noise())
        workers = more.get("workers", 1)
        capacity = workers * cap / (service(cap) * noise.mean())
        trace = more.pop("trace", None) or poisson_at(load, n, capacity)
        made.append(Workload(name, family, service, cap, slo_s, trace, **more))

    devices: list[tuple[str, Service, int, tuple[float, ...]]] = [
        ("4+.25n", line(4, 0.25), 64, (0.025, 0.05, 0.1)),
        ("20+.5n", line(20, 0.5), 32, (0.06, 0.1)),
        ("1+1n", line(1, 1), 16, (0.025, 0.05)),
        ("flat 45", line(45, 0), 32, (0.1,)),
        (".3+.05n", line(0.3, 0.05), 64, (0.01,)),
    ]
    scatters = [
        ("", Noise()),
        ("σ.1", Noise(0.1)),
        ("σ.2", Noise(0.2)),
        ("σ.4", Noise(0.4)),
        ("5%×3", Noise(0.02, 0.05, 3.0)),
        ("1%×10", Noise(0.05, 0.01, 10.0)),
    ]
    for device, service, cap, slos in devices:
        for slo_s in slos:
            for scatter, noise in scatters:
                for load in (0.3, 0.6, 0.9, 1.2, 2.0):
                    name = f"{device} cap {cap} slo {slo_s * 1e3:g} {scatter} load {load}"
                    add(name, "noise", service, cap, slo_s, load, noise=noise)
    for times in (10, 30):
        for device, service, cap, slos in devices[:-1]:
            fast = faster(service, times)
            for slo_s in slos:
                for scatter, noise in (scatters[3], scatters[4]):
                    for load in (0.3, 0.6, 0.9, 1.2, 2.0):
                        name = f"({device})/{times} cap {cap} slo {slo_s / times * 1e3:.2g} {scatter} load {load}"
                        add(name, "fast", fast, cap, slo_s / times, load, noise=noise)
    for load in (4.0, 6.7):
        add(f"flat 45 cap 32 slo 100 σ.2 {load * 100:g}/s", "noise", line(45, 0), 32, 0.1, load * 0.1, noise=Noise(0.2))

    def classes(shares: Sequence[float]) -> Callable[[Floats, int], NDArray[np.int64]]:
        return lambda trace, seed: np.random.default_rng(seed + 7).choice(len(shares), len(trace), p=shares)

    for device, service, cap, slo_s in (
        ("4+.25n", line(4, 0.25), 64, 0.05),
        ("4+.25n", line(4, 0.25), 32, 0.03),
        ("20+.5n", line(20, 0.5), 32, 0.1),
        ("1+1n", line(1, 1), 16, 0.05),
    ):
        for shares in ((0.99, 0.01), (0.95, 0.05), (0.9, 0.1), (0.7, 0.3), (0.3, 0.7), (0.2, 0.3, 0.5)):
            for load in (1.05, 1.2, 1.5, 2.0):
                name = f"{device} cap {cap} slo {slo_s * 1e3:g} classes {'/'.join(map(str, shares))} load {load}"
                add(name, "classes", service, cap, slo_s, load, priorities=classes(shares))
            add(
                f"{device} cap {cap} slo {slo_s * 1e3:g} σ.2 classes {'/'.join(map(str, shares))} load 1.2",
                "classes",
                service,
                cap,
                slo_s,
                1.2,
                priorities=classes(shares),
                noise=Noise(0.2),
            )
    for urgent_s, other_s in ((0.03, 0.1), (0.1, 0.03)):
        limits = lambda trace, seed, a=urgent_s, b=other_s: np.where(classes((0.3, 0.7))(trace, seed) == 0, a, b)  # noqa: E731
        for load in (0.9, 1.2, 2.0):
            add(
                f"4+.25n cap 64 classes .3/.7 limits {urgent_s * 1e3:g}/{other_s * 1e3:g} load {load}",
                "classes",
                line(4, 0.25),
                64,
                0.05,
                load,
                priorities=classes((0.3, 0.7)),
                limits_s=limits,
            )

    for device, service, cap, slo_s in (
        ("flat 20", line(20, 0), 32, 0.025),
        ("flat 20", line(20, 0), 32, 0.03),
        ("4+.25n", line(4, 0.25), 64, 0.012),
        ("10+.1n", line(10, 0.1), 32, 0.016),
    ):
        for load in (0.2, 0.5):
            add(f"{device} cap {cap} slo {slo_s * 1e3:g} load {load}", "tight", service, cap, slo_s, load)
    for slo_s in (0.025, 0.03):
        bursts = lambda _seed: np.concatenate([[0.01], np.repeat(np.arange(1, 121) * 0.1, 32)])  # noqa: E731
        add(
            f"flat 20 slo {slo_s * 1e3:g}, one request, then bursts of 32",
            "tight",
            line(20, 0),
            32,
            slo_s,
            1,
            trace=bursts,
        )

    for device, service, cap, slo_s in (("4+.25n", line(4, 0.25), 64, 0.05), ("20+.5n", line(20, 0.5), 32, 0.1)):
        for shapes, workers, times, loads in (
            (2, 1, 2, (0.2, 0.4, 0.7, 1.0)),
            (8, 1, 2, (0.2, 0.4, 0.7, 1.0)),
            (2, 1, 1, (0.8, 1.0, 1.3)),
            (4, 1, 1, (0.8, 1.0, 1.3)),
            (4, 2, 1, (0.8, 1.0, 1.3)),
        ):
            for load in loads:
                name = f"{device} slo {slo_s * times * 1e3:g} {shapes} shapes {workers} workers load {load}"
                add(name, "shapes", service, cap, slo_s * times, load, shapes=shapes, workers=workers)
        for shapes, workers, load in itertools.product((2, 4, 8), (1, 2), (0.9, 1.2, 1.6)):
            name = f"{device} slo {slo_s * 2e3:g} classes .3/.7 {shapes} shapes {workers} workers load {load}"
            several = {"shapes": shapes, "workers": workers, "priorities": classes((0.3, 0.7))}
            add(name, "classes of shapes", service, cap, 2 * slo_s, load, **several)

    for device, service, cap, slo_s in (("4+.25n", line(4, 0.25), 64, 0.05), ("5+1n", line(5, 1), 32, 0.05)):
        capacity = cap / service(cap)
        for load in (0.3, 0.5, 0.7, 0.9):
            for kind, make in (
                ("gamma 4", lambda seed, r=load * capacity: arrivals.gamma(r, n, seed)),
                ("on-off", lambda seed, r=load * capacity: arrivals.on_off(r, n, seed)),
                ("bursts", lambda seed, r=load * capacity: arrivals.bursts(r, n, seed)),
                ("all at once", lambda _seed, r=load * capacity: np.repeat(np.arange(1, 1 + n // 48) * (48 / r), 48)),
            ):
                add(
                    f"{device} slo {slo_s * 1e3:g} {kind} load {load}",
                    "arrivals",
                    service,
                    cap,
                    slo_s,
                    load,
                    trace=make,
                )
        for recorded in ("azure_code_2023", "azure_conv_2023", "apollo_driving"):
            trace = _recorded(f"arrivals_{recorded}.npz")
            if trace is not None:
                for load in (0.3, 0.7):
                    scaled = trace[:n] * ((len(trace[:n]) / trace[:n][-1]) / (load * capacity))
                    add(
                        f"{device} slo {slo_s * 1e3:g} {recorded} load {load}",
                        "arrivals",
                        service,
                        cap,
                        slo_s,
                        load,
                        trace=lambda _seed, t=scaled: t,
                    )

    for workers in (2, 4):
        for device, service, cap, slo_s in (("4+.25n", line(4, 0.25), 64, 0.05), ("20+.5n", line(20, 0.5), 32, 0.1)):
            for scatter, noise in (("", Noise()), ("σ.2", Noise(0.2)), ("5%×3", Noise(0.02, 0.05, 3.0))):
                for load in (0.5, 0.8, 1.2):
                    add(
                        f"{device} slo {slo_s * 1e3:g} {scatter} {workers} workers load {load}",
                        "workers",
                        service,
                        cap,
                        slo_s,
                        load,
                        workers=workers,
                        noise=noise,
                    )

    changes: list[tuple[str, Callable[[float], float]]] = [
        ("2x slower 3..6 s", lambda t: 2.0 if 3 <= t < 6 else 1.0),
        ("4x slower 3..4 s", lambda t: 4.0 if 3 <= t < 4 else 1.0),
        ("2x faster from 3 s", lambda t: 1.0 if t < 3 else 0.5),
        ("20x for 0.3 s", lambda t: 20.0 if 3 <= t < 3.3 else 1.0),
        ("drift to 1.5x", lambda t: min(1.0 + t / 12, 1.5)),
    ]
    for device, service, cap, slo_s in (("4+.25n", line(4, 0.25), 64, 0.05), ("20+.5n", line(20, 0.5), 32, 0.1)):
        for name, slower in changes:
            for load in (0.3, 0.5, 0.8):
                rate = load * cap / service(cap)
                seconds = max(n / rate, 8.0)
                add(
                    f"{device} slo {slo_s * 1e3:g} {name} load {load}",
                    "changes",
                    service,
                    cap,
                    slo_s,
                    load,
                    slower=slower,
                    noise=Noise(0.05),
                    trace=lambda seed, r=rate, s=seconds: arrivals.poisson(r, int(r * s), seed),
                )
        for load in (0.5,):
            after = lambda t: (t >= 3.05) & (t < 5.5)  # noqa: E731
            rate = load * cap / service(cap)
            add(
                f"{device} four slow batches, the time after, load {load}",
                "changes",
                service,
                cap,
                slo_s,
                load,
                slower=lambda t: 10.0 if 3 <= t < 3.0 + 0.3 else 1.0,
                measured=after,
                trace=lambda seed, r=rate: arrivals.poisson(r, int(r * 8), seed),
            )

    for device, service, cap, slo_s in (
        ("4+.04n", line(4, 0.04), 64, 0.01),
        ("8+.24n", line(8, 0.24), 32, 0.025),
        ("8+.48n", line(8, 0.48), 16, 0.03),
    ):
        for factor, load in itertools.product((3.0, 6.0), (0.5, 0.8)):
            rate = load * cap / service(cap)
            full_s = service(cap)
            begin_s, end_s = 120 * full_s, 140 * full_s
            add(
                f"{device} cap {cap} slo {slo_s * 1e3:g} {factor:g}x slower for 20 batches, time after, load {load}",
                "changes",
                service,
                cap,
                slo_s,
                load,
                slower=lambda t, f=factor, a=begin_s, b=end_s: f if a <= t < b else 1.0,
                measured=lambda t, b=end_s + 20 * full_s: t >= b,
                noise=Noise(0.05),
                trace=lambda seed, r=rate, s=260 * full_s: arrivals.poisson(r, int(r * s), seed),
            )

    for tile, setup_ms, tile_ms, cap, slo_s in (
        (16, 1.3, 5.9, 32, 0.016),
        (16, 1.3, 5.9, 32, 0.03),
        (8, 1.0, 3.0, 32, 0.012),
        (32, 3.0, 10.0, 64, 0.03),
        (32, 3.0, 10.0, 64, 0.05),
    ):
        service = filled_up(setup_ms, tile_ms, tile)
        for load in (0.5, 0.8, 1.2):
            for scatter, noise in scatters[:2]:
                name = f"{setup_ms:g}+{tile_ms:g}*ceil(n/{tile}) cap {cap} slo {slo_s * 1e3:g} {scatter} load {load}"
                add(name, "filled up", service, cap, slo_s, load, noise=noise)

    def spread(kind: str, slo_s: float) -> Callable[[Floats, int], Floats]:
        """Return a function that draws seconds from arrival to deadline, in one of three ways around an SLO."""

        def limits(trace: Floats, seed: int) -> Floats:
            rng = np.random.default_rng(seed + 3)
            if kind == "½/2×":
                return np.where(rng.random(len(trace)) < 0.5, slo_s / 2, 2 * slo_s)
            if kind == "½ to 2×":
                return rng.uniform(slo_s / 2, 2 * slo_s, len(trace))
            return slo_s * np.exp(0.5 * rng.standard_normal(len(trace)))

        return limits

    for device, service, cap, slo_s in (
        ("4+.25n", line(4, 0.25), 64, 0.06),
        ("20+5n", line(20, 5), 8, 0.12),
        ("1+1n", line(1, 1), 16, 0.05),
    ):
        kinds = ("½/2×", "½ to 2×", "σ.5")
        for kind, (scatter, noise), load in itertools.product(kinds, (scatters[0], scatters[2]), (0.9, 1.3, 1.7)):
            name = f"{device} cap {cap} slo {slo_s * 1e3:g} limits {kind} {scatter} load {load}"
            add(name, "mixed limits", service, cap, slo_s, load, noise=noise, limits_s=spread(kind, slo_s))

    def without(part: float) -> Callable[[Floats, int], Floats]:
        return lambda trace, seed: np.where(np.random.default_rng(seed + 9).random(len(trace)) < part, np.inf, 0.05)

    for part in (0.05, 0.3):
        for load in (0.5, 0.8, 1.2):
            seconds = 12.0
            service, cap = line(4, 0.25), 64
            rate = load * cap / service(cap)
            for counted, which in (("with a deadline", False), ("without one", True)):
                measured = lambda t, p=part, w=which: np.isinf(without(p)(t, 1)) == w  # noqa: E731
                add(
                    f"4+.25n {part:.0%} without a deadline, load {load}: those {counted}",
                    "no deadline",
                    service,
                    cap,
                    0.05,
                    load,
                    limits_s=lambda trace, _seed, p=part: without(p)(trace, 1),
                    measured=measured,
                    trace=lambda seed, r=rate: arrivals.poisson(r, int(r * 8), seed),
                )
    for device, service, cap, slo_s in (
        ("4+.25n", line(4, 0.25), 64, 0.05),
        ("flat 45", line(45, 0), 32, 0.1),
        ("1+1n", line(1, 1), 16, 0.05),
    ):
        for load in (0.3, 0.6, 0.9):
            rate = load * cap / service(cap)
            add(
                f"{device} slo {slo_s * 1e3:g} the first half second, load {load}",
                "start",
                service,
                cap,
                slo_s,
                load,
                measured=lambda t: t < 0.5,
                trace=lambda seed, r=rate: arrivals.poisson(r, int(r), seed),
            )
    return made
