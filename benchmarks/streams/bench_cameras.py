"""Random cameras and microphones in virtual time: results per second, ages and fairness, beside a loop by hand.

    python benchmarks/run.py cameras [--workloads 48] [--seed 0]

Cameras send their newest frame; microphones send all chunks in order, except those that cannot be on time.

Workloads differ in the cameras (4 to 96, of one rate or several, some with jitter), the device (1 to 32 rows, with
set-up times from none to most of the time, and noise), the load (half to four times the capacity of the device) and the
age limit, if any. The loop by hand is the simplest good program: whenever the device is free, it takes the newest frame
of as many cameras as fit, longest waiting first. If there is an age limit, the loop knows the true mean of the device's
durations, drops frames that are too old, and takes the most frames that are on time. From a microphone it takes the
oldest chunk, one per batch.
"""

import argparse
import asyncio
import functools
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import attrs
import numpy as np
from _lib.figures import Figure

import streaminfer as si
from streaminfer.streams import Block, Frame, LatestOnly, StreamSession
from streaminfer.testing import VirtualLoop, run

WARM = 0.2  # share of a run, from its start, that is left out
MOST_FRAMES = 40_000
MOST_CHUNKS = 64  # queued chunks of a microphone
MOST_SOUND = 0.9  # highest load of microphones without an age limit, as a share of the capacity
PER_S = Figure("results in time per second of random live streams", over="a loop by hand that knows the device")
P50 = Figure("median age of results of random live streams", over="a loop by hand that knows the device")
P99 = Figure("p99 age of results of random live streams", over="a loop by hand that knows the device")


@attrs.frozen
class Workload:
    """Cameras or microphones, and a device.

    Attributes:
        rows: maximum rows of a batch.
        full_s: seconds of a full batch.
        setup: share of ``full_s`` that does not depend on the rows.
        sigma: standard deviation of the logarithm of durations.
        rates: frames per second of each camera.
        jitter: mean delay of a frame, over the period of its camera.
        max_age_s: age from which a result is worthless; infinite: no limit.
        load: frames over the capacity of the device.
        max_waiting: maximum queued frames of one camera; more than one for microphones.
    """

    rows: int
    full_s: float
    setup: float
    sigma: float
    rates: Any
    jitter: float
    max_age_s: float
    load: float
    max_waiting: int

    def mean_s(self, rows: int) -> float:
        """Return the mean seconds of a batch."""
        return self.full_s * (self.setup + (1 - self.setup) * rows / self.rows)

    @property
    def seconds(self) -> float:
        """Length of a run."""
        return float(min(max(400 * self.full_s, 60 / self.rates.mean()), MOST_FRAMES / self.rates.sum()))

    def frames(self, seed: int) -> list[list[tuple[float, float]]]:
        """Return the instants of capture and arrival of each camera's frames."""
        random = np.random.default_rng(seed)
        made = []
        for rate in self.rates:
            captured_s = random.uniform(0, 1 / rate) + np.arange(int(self.seconds * rate)) / rate
            late_s = random.exponential(self.jitter / rate, len(captured_s)) if self.jitter else 0.0
            arrived_s = np.maximum.accumulate(captured_s + late_s)
            made.append(list(zip(captured_s.tolist(), arrived_s.tolist(), strict=True)))
        return made


def make_workload(number: int, seed: int, max_waiting: int) -> Workload:
    """Return a random workload."""
    random = np.random.default_rng([seed, number])
    rows = int(random.choice([1, 4, 8, 16, 32]))
    full_s, setup = float(10 ** random.uniform(-2.3, -0.8)), float(random.uniform(0.0, 0.95))
    cameras, load = int(random.choice([4, 16, 48, 96])), float(random.choice([0.5, 0.8, 1.0, 1.3, 2.0, 4.0]))
    shares = np.ones(cameras) if random.random() < 0.6 else random.choice([0.3, 1.0, 3.0], cameras)
    limit = float(random.choice([math.inf, 2.0, 3.0, 4.0]))
    per_s = rows / full_s
    if max_waiting > 1:  # a batch has at most one chunk of each microphone
        most = min(rows, cameras)
        per_s = most / (full_s * (setup + (1 - setup) * most / rows))
        load = min(load, MOST_SOUND) if math.isinf(limit) else load
    longest_s = full_s * max(1.0, setup + (1 - setup) / rows)
    return Workload(
        rows,
        full_s,
        setup,
        sigma=float(random.choice([0.0, 0.1, 0.2])),
        rates=shares / shares.sum() * load * per_s,
        jitter=float(random.choice([0.0, 0.05, 0.5])),
        max_age_s=limit * longest_s,
        load=load,
        max_waiting=max_waiting,
    )


class Device:
    """Device whose batches take the durations of the workload."""

    returns_new_arrays = True

    def __init__(self, workload: Workload, seed: int) -> None:
        self._workload = workload
        self._random = np.random.default_rng([seed, 1])

    async def infer(self, batch: Any) -> list[None]:
        noise = math.exp(self._workload.sigma * self._random.standard_normal() - self._workload.sigma**2 / 2)
        await asyncio.sleep(self._workload.mean_s(len(batch)) * noise)
        return [None] * len(batch)


class Seen(NamedTuple):
    """One result: the camera, and the instants of capture and delivery."""

    camera: Any
    captured_s: float
    delivered_s: float


async def in_session(workload: Workload, seed: int, loop: VirtualLoop) -> list[Seen]:
    """Serve the cameras with a session."""

    async def source(frames: list[tuple[float, float]]) -> AsyncIterator[Frame]:
        for captured_s, arrived_s in frames:
            await asyncio.sleep(max(0.0, arrived_s - loop.time()))
            yield Frame(None, round(captured_s * 1e9))

    batcher = si.AdaptiveBatcher(max_batch_size=workload.rows, max_queue_size=10**5, stack=False)
    async with si.Stack(batcher, Device(workload, seed), clock=loop.clock) as service:
        policy = LatestOnly() if workload.max_waiting == 1 else Block(workload.max_waiting)
        session = StreamSession(service, policy=policy, max_age_s=workload.max_age_s)
        for camera, frames in enumerate(workload.frames(seed)):
            session.add(source(frames), stream_id=camera)
        return [
            Seen(one.stream_id, one.captured_ns / 1e9, one.delivered_ns / 1e9)
            async for one in session
            if one.error is None
        ]


async def by_hand(workload: Workload, seed: int, loop: VirtualLoop) -> list[Seen]:
    """Serve the cameras with a loop around the device."""
    cameras, device = workload.frames(seed), Device(workload, seed)
    waiting: dict[int, deque[float]] = {}
    served_s = dict.fromkeys(range(len(cameras)), 0.0)
    arrived, results = asyncio.Event(), []

    async def play(camera: int) -> None:
        for captured_s, arrived_s in cameras[camera]:
            await asyncio.sleep(max(0.0, arrived_s - loop.time()))
            frames = waiting.setdefault(camera, deque())
            if workload.max_waiting == 1:
                frames.clear()  # only the newest frame is kept
            frames.append(captured_s)
            arrived.set()

    players = [asyncio.ensure_future(play(camera)) for camera in range(len(cameras))]
    ended = asyncio.ensure_future(asyncio.wait(players))
    ended.add_done_callback(lambda _: arrived.set())
    while waiting or not ended.done():
        chosen = choose(workload, waiting, served_s, loop.time())
        if not chosen:
            if ended.done():
                break  # the frames that are left are too old
            arrived.clear()
            await arrived.wait()
            continue
        taken = [(camera, waiting[camera].popleft()) for camera in chosen]
        await device.infer(chosen)
        for camera, captured_s in taken:
            served_s[camera] = loop.time()
            results.append(Seen(camera, captured_s, loop.time()))
    return results


def choose(workload: Workload, waiting: dict[int, deque[float]], served_s: dict[int, float], now_s: float) -> list[int]:
    """Return the cameras of the next batch: as many as can be in time, longest waiting first."""
    left_s = {}
    for camera, frames in list(waiting.items()):
        while frames and workload.max_age_s - (now_s - frames[0]) < workload.mean_s(1):
            frames.popleft()
        if frames:
            left_s[camera] = workload.max_age_s - (now_s - frames[0])
        else:
            del waiting[camera]
    order = sorted(waiting, key=served_s.__getitem__)
    for rows in range(min(workload.rows, len(order)), 0, -1):
        in_time = [camera for camera in order if left_s[camera] >= workload.mean_s(rows)]
        if len(in_time) >= rows:
            return in_time[:rows]
    return []


class Figures(NamedTuple):
    """Figures of one way: results in time per second, quantiles of their ages in seconds, and Jain's index."""

    per_s: float
    p50_s: float
    p99_s: float
    jain: float


def figures(workload: Workload, results: list[Seen]) -> Figures:
    """Return the figures of the results, without the start of the run."""
    begin_s, end_s = WARM * workload.seconds, workload.seconds
    kept = [it for it in results if it.captured_s >= begin_s and it.delivered_s < end_s]
    ages_s = np.array([it.delivered_s - it.captured_s for it in kept])
    in_time = np.bincount(
        [it.camera for it, age_s in zip(kept, ages_s, strict=True) if age_s <= workload.max_age_s],
        minlength=len(workload.rates),
    )
    per_s = in_time / (end_s - begin_s)
    shares = per_s / np.minimum(workload.rates, fair_rate(workload.rates, per_s.sum()))
    jain = float(shares.sum() ** 2 / (len(shares) * (shares**2).sum())) if shares.any() else 0.0
    p50_s, p99_s = np.quantile(ages_s, [0.5, 0.99]) if len(ages_s) else (math.inf, math.inf)
    return Figures(float(per_s.sum()), float(p50_s), float(p99_s), jain)


def fair_rate(rates: Any, total: float) -> float:
    """Return the largest rate of a camera if ``total`` results per second are shared max-min fairly."""
    low, high = 0.0, float(rates.max())
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if np.minimum(rates, middle).sum() > total else (middle, high)
    return max(high, 1e-9)


def measure(number: int, seed: int, max_waiting: int) -> tuple[Workload, Figures, Figures]:
    """Serve one workload in both ways; return it with our figures and those of the loop by hand."""
    workload = make_workload(number, seed, max_waiting)
    ways: list[Callable[[Workload, int, VirtualLoop], Any]] = [in_session, by_hand]
    ours, hand = (figures(workload, run(functools.partial(way, workload, seed))) for way in ways)
    return workload, ours, hand


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workloads", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    si.warmup()
    with ProcessPoolExecutor(2) as pool:
        for kind, max_waiting in (("cameras", 1), ("microphones", MOST_CHUNKS)):
            one = functools.partial(measure, seed=options.seed, max_waiting=max_waiting)
            print(f"{options.workloads} random workloads of {kind}, over a loop by hand (virtual time)")
            report(kind, list(pool.map(one, range(options.workloads))))


def report(kind: str, found: list[tuple[Workload, Figures, Figures]]) -> None:
    """Report geometric means of the ratios of workloads, and print the workloads in which ours is behind."""
    for name, is_asked in (("without an age limit", math.isinf), ("with an age limit", math.isfinite)):
        pairs = [(ours, hand) for workload, ours, hand in found if is_asked(workload.max_age_s)]
        ratios = {
            what: np.array([getattr(ours, what) / max(getattr(hand, what), 1e-9) for ours, hand in pairs])
            for what in ("per_s", "p50_s", "p99_s")
        }
        jain = np.array([ours.jain - hand.jain for ours, hand in pairs])
        case = f"{kind} {name}"
        least = f"mean of {len(pairs)} workloads, least {ratios['per_s'].min():.2f}×"
        PER_S.report(geometric(ratios["per_s"]), case=case, note=least)
        P50.report(geometric(ratios["p50_s"]), case=case)
        P99.report(geometric(ratios["p99_s"]), case=case, note=f"most {ratios['p99_s'].max():.2f}×")
        print(f"  {case}: Jain's index {jain.mean():+.3f} (least {jain.min():+.2f})")
    for workload, ours, hand in found:
        if ours.per_s < 0.95 * hand.per_s or ours.p99_s > 1.1 * hand.p99_s or ours.jain < hand.jain - 0.05:
            print(f"  behind: {describe(workload)}\n    ours {show(ours)}\n    hand {show(hand)}")


def geometric(ratios: Any) -> float:
    """Return the geometric mean."""
    return float(np.exp(np.log(np.maximum(ratios, 1e-3)).mean()))


def describe(workload: Workload) -> str:
    limit = "none" if math.isinf(workload.max_age_s) else f"{workload.max_age_s * 1e3:.1f} ms"
    return (
        f"{len(workload.rates)} streams, load {workload.load:g}, batches of {workload.rows} rows, "
        f"{workload.mean_s(1) * 1e3:.1f} to {workload.full_s * 1e3:.1f} ms, σ {workload.sigma:g}, limit {limit}"
    )


def show(it: Figures) -> str:
    return f"{it.per_s:.1f}/s, age p50 {it.p50_s * 1e3:.1f} and p99 {it.p99_s * 1e3:.1f} ms, Jain's index {it.jain:.2f}"


if __name__ == "__main__":
    main()
