"""Visitors that upload more pictures than the face detector can process; many pictures were uploaded before.

The pictures are real frames of the clip. The uploads are synthetic: visitors come independently of each other (Poisson)
and choose by Zipf's law, the n-th most popular picture 1/n times as often as the first. This favors a cache more than
the exponents from 0.64 to 0.83 that Breslau et al. (1999) found at web proxies, and a catalog of 240 pictures is small.
All draws use one seed.

The rate depends on the machine: a little more than the detector alone completes, measured just before. The same
visitors, at the same instants, then use the detector without and with a cache. The cache starts empty, and has room for
fewer responses than there are pictures.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

import streaminfer as si
from demo.budget import make_objective, watching
from demo.faces import FULL, normalize
from demo.findings import COMPUTED, ENOUGH, KEPT, LOST, SHARED, Served, Uploads, Visited
from demo.machine import CpuClock
from demo.meter import Meter, measure_capacity
from demo.services import face_service
from demo.video import Frames
from streaminfer.simulation.arrivals import poisson

__all__ = ["capacity_of", "draw_uploads", "make_cache", "receive", "visit"]

SEED = 1969
OVERLOAD = 1.15
"""Rate of visitors over the rate that the detector completes without a cache."""
PATIENCE_S = 0.05
MEASURE_S = 0.6
CALLERS = 2
"""Enough callers that the model's thread always has a next picture."""
CACHE_BYTES = 16 * 2**20
"""About a hundred responses of 157 KB, and the clip has 240 pictures."""
TTL_S = 60.0

MakeService = Callable[..., si.Stack]


def draw_uploads(rate: float, seconds: float, pictures: int, seed: int = SEED) -> Uploads:
    """Draw the instants and pictures of the uploads.

    Args:
        rate: visitors per second.
        seconds: duration.
        pictures: number of different pictures.
        seed: the same seed gives the same visitors.
    """
    count = max(1, round(rate * seconds))
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, pictures + 1)
    by_rank = rng.permutation(pictures)
    ranks = rng.choice(pictures, size=count, p=popularity / popularity.sum())
    return Uploads(rate, poisson(rate, count, seed), by_rank[ranks])


def make_cache() -> si.EdgeCache:
    """Return the cache of the trial, empty."""
    return si.EdgeCache(max_bytes=CACHE_BYTES, ttl_s=TTL_S, eviction="s3fifo")


async def capacity_of(service: si.Stack, frames: Frames, seconds: float) -> float:
    """Return the pictures per second that a service completes."""

    def send(caller: int, sent: int) -> Awaitable[si.Response]:
        return service.call(si.Request(normalize(frames.pixels[(caller + sent * CALLERS) % len(frames)])))

    return await measure_capacity(send, CALLERS, seconds, service.clock)


@attrs.define(eq=False)
class Reception:
    """Sends the uploads of visitors to a service, each at the instant at which it is due (an open loop).

    Attributes:
        service: service that takes a normalized picture.
        frames: frames that are the pictures of the uploads.
        meter: outcomes and latency of all uploads.
        became: outcome of each upload, in their order.
        computed: the first response that the model computed for each picture.
        repeated: responses from the cache, or shared with an earlier caller, each with its picture.
    """

    service: si.Stack
    frames: Frames
    meter: Meter = attrs.field(factory=lambda: Meter(round(PATIENCE_S * 1e9)))
    became: dict[int, int] = attrs.field(factory=dict)
    computed: dict[int, Any] = attrs.field(factory=dict)
    repeated: list[tuple[int, Any]] = attrs.field(factory=list)

    async def take(self, uploads: Uploads) -> None:
        """Send all uploads and wait until each has a response or an error."""
        clock = self.service.clock
        began_ns = clock()
        async with asyncio.TaskGroup() as group:
            for number, (due_s, picture) in enumerate(
                zip(uploads.due_s.tolist(), uploads.pictures.tolist(), strict=True)
            ):
                due_ns = began_ns + round(due_s * 1e9)
                if due_ns > clock():
                    await asyncio.sleep((due_ns - clock()) / 1e9)
                group.create_task(self._ask(number, picture, due_ns))

    async def _ask(self, number: int, picture: int, due_ns: int) -> None:
        self.meter.sent += 1
        try:
            # a new array each time, like an upload, so the cache can find it only by its content
            response = await self.service.call(si.Request(normalize(self.frames.pixels[picture])))
        except si.StreamInferError as error:
            self.meter.failed(error)
            self.became[number] = LOST
            return
        self.meter.answered(self.service.clock() - due_ns)
        if response.timings is not None:  # only the caller whose request was computed gets timings
            self.became[number] = COMPUTED
            self.computed.setdefault(picture, response.outputs)
        else:
            self.became[number] = KEPT if response.source == "cache" else SHARED
            self.repeated.append((picture, response.outputs))


async def receive(
    name: str, uploads: Uploads, frames: Frames, cache: si.EdgeCache | None, make_service: MakeService
) -> tuple[Served, Reception]:
    """Serve the visitors in one way.

    Args:
        name: name of the way.
        uploads: uploads of the visitors.
        frames: frames that are the pictures of the uploads.
        cache: cache around the batcher; ``None`` for no cache.
        make_service: builds the stack.
    """
    slo = make_objective(name, threshold_s=PATIENCE_S, objective=ENOUGH, seconds=uploads.seconds)
    async with make_service(name, cache=cache, slo=slo) as service, watching(slo) as watch:
        reception = Reception(service, frames)
        cpu = CpuClock(FULL.file)
        began_ns = service.clock()
        await reception.take(uploads)
        seconds = (service.clock() - began_ns) / 1e9
        use = cpu.read()
        served = Served(
            name=name,
            seconds=seconds,
            meter=reception.meter,
            cpu=use,
            budget=watch.read(),
            became=np.array([reception.became[number] for number in range(len(uploads))], np.int8),
            cache=None if cache is None else cache.statistics(),
            flights=None if cache is None else cache.flights,
        )
    return served, reception


async def visit(
    frames: Frames, seconds: float, say: Callable[[str], None], make_service: MakeService = face_service
) -> Visited:
    """Serve the same visitors without and with a cache.

    Args:
        frames: frames that are the pictures of the uploads.
        seconds: duration of each run.
        say: called with each line of progress.
        make_service: builds a stack, with a name, a cache or none, and an objective or none.
    """
    say("visitors: how many pictures a second does the face detector answer?")
    async with make_service("visitors") as service:
        capacity = await capacity_of(service, frames, MEASURE_S)
    uploads = draw_uploads(OVERLOAD * capacity, seconds, len(frames))
    say(f"visitors, no cache: {uploads.rate:.0f} a second for {seconds:g} s")
    plain, reference = await receive("visitors, no cache", uploads, frames, None, make_service)
    say(f"visitors, cached: {uploads.rate:.0f} a second for {seconds:g} s")
    cached, reception = await receive("visitors, cached", uploads, frames, make_cache(), make_service)
    compared = [
        _same(answer, reference.computed[picture])
        for picture, answer in reception.repeated
        if picture in reference.computed
    ]
    return Visited(uploads, len(frames), capacity, plain, cached, len(compared), sum(compared))


def _same(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> bool:
    """Return whether two responses are equal to the last bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
