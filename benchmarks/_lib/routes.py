"""Simulated models behind a fallback router or a fixed mix of routes, on a virtual clock."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import streaminfer as si
from streaminfer.request import Batch
from streaminfer.routing import FallbackRouter, Route
from streaminfer.testing import VirtualLoop, run

LIMIT_S = 0.1


class Model(NamedTuple):
    """A simulated model: a batch of n takes ``setup_s + each_s · n``."""

    name: str
    quality: float
    cost: float
    setup_s: float
    each_s: float


FULL = Model("full", 1.0, 5.0, 0.004, 0.003)
MIDDLE = Model("middle", 0.9, 2.5, 0.002, 0.0015)
FRONT = Model("front", 0.8, 1.0, 0.0008, 0.0006)
TWO, THREE = (FULL, FRONT), (FULL, MIDDLE, FRONT)
QUALITY = {model.name: model.quality for model in THREE}


class Device:
    """Device that runs one batch at a time; ``slowness`` multiplies the duration of a batch."""

    def __init__(self) -> None:
        self.free = asyncio.Lock()
        self.slowness = 1.0


class OnDevice:
    """Backend of a model on a device."""

    def __init__(self, device: Device, model: Model) -> None:
        self.device = device
        self.model = model

    async def infer(self, batch: Batch) -> list[float]:
        async with self.device.free:
            took_s = self.model.setup_s + self.model.each_s * len(batch)
            await asyncio.sleep(took_s * self.device.slowness)
        return [1.0] * len(batch)


class Mix:
    """Baseline of the router: sends each request to a random route, with fixed probabilities."""

    enforces_deadline = True

    def __init__(self, routes: Sequence[Route], shares: Sequence[float]) -> None:
        self.routes = routes
        self.edges = np.cumsum(shares)
        self.random = np.random.default_rng(7)

    async def call(self, request: si.Request) -> si.Response:
        route = self.routes[min(int(np.searchsorted(self.edges, self.random.random(), "right")), len(self.routes) - 1)]
        response = await route.service.call(request)
        return si.Response(response.outputs, False, route.name)

    async def start(self) -> None:
        for route in self.routes:
            await route.service.start()

    async def stop(self, *, drain: bool = True) -> None:
        for route in self.routes:
            await route.service.stop(drain=drain)

    def bind_clock(self, clock: Callable[[], int]) -> None:
        for route in self.routes:
            route.service.bind_clock(clock)


class Answer(NamedTuple):
    """Outcome of one request; ``route`` is empty if no route responded."""

    arrived_s: float
    on_time: bool
    route: str


def play(
    models: Sequence[Model],
    rate: Callable[[float], float],
    *,
    one_device: bool,
    until_s: float,
    shares: Sequence[float] | None = None,
    slowness: Callable[[float], float] | None = None,
    seed: int = 1,
) -> list[Answer]:
    """Send Poisson requests, at a rate that can change, to a router or to a fixed mix, and return their outcomes."""

    async def main(loop: VirtualLoop) -> list[Answer]:
        shared = Device()
        devices = [shared if one_device else Device() for _ in models]
        routes = [
            Route(
                model.name,
                [si.AdaptiveBatcher(max_batch_size=32, slo_s=LIMIT_S), OnDevice(device, model)],
                quality=model.quality,
                cost=model.cost,
                device="" if one_device else model.name,
            )
            for model, device in zip(models, devices, strict=True)
        ]
        service: Any = FallbackRouter(*routes) if shares is None else Mix(routes, shares)
        answers: list[Answer] = []

        async def ask(stack: si.Stack) -> None:
            arrived_ns = loop.now_ns
            route = ""
            try:
                response = await stack.call(si.Request(1.0, deadline_ns=arrived_ns + round(LIMIT_S * 1e9)))
                route = response.source.split(" ")[0]
            except si.errors.StreamInferError:
                pass
            on_time = bool(route) and loop.now_ns <= arrived_ns + LIMIT_S * 1e9
            answers.append(Answer(arrived_ns / 1e9, on_time, route))

        random = np.random.default_rng(seed)
        async with si.Stack(service, clock=loop.clock) as stack:
            asked, instant_s = [], 0.0
            while instant_s < until_s:
                instant_s += random.exponential(1 / rate(instant_s))
                await asyncio.sleep(max(instant_s - loop.time(), 0))
                for device in devices:
                    device.slowness = 1.0 if slowness is None else slowness(instant_s)
                asked.append(asyncio.ensure_future(ask(stack)))
            await asyncio.gather(*asked)
        return answers

    return run(main)


class Score(NamedTuple):
    """Figures of the requests that arrived in an interval."""

    goodput: float
    on_time: float
    on_time_of_answered: float
    quality_per_request: float
    mean_quality: float


def score(answers: list[Answer], from_s: float, to_s: float) -> Score:
    """Return the figures of the requests that arrived from ``from_s`` to ``to_s``."""
    asked = [answer for answer in answers if from_s <= answer.arrived_s < to_s]
    answered = [answer for answer in asked if answer.route]
    good = [answer for answer in asked if answer.on_time]
    worth = sum(QUALITY[answer.route] for answer in good)
    return Score(
        len(good) / (to_s - from_s),
        len(good) / max(len(asked), 1),
        len(good) / max(len(answered), 1),
        worth / max(len(asked), 1),
        worth / max(len(good), 1),
    )


def mean(scores: Sequence[Score]) -> Score:
    return Score(*(float(value) for value in np.mean(scores, axis=0)))
