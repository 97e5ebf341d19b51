"""Outcomes of a window of time: those of each request that was due in it, or the number that completed."""

import asyncio
import math
from collections.abc import Awaitable, Callable

import streaminfer as si
from streaminfer.protocols import Clock

__all__ = ["Meter", "measure_capacity"]


async def measure_capacity(
    send: Callable[[int, int], Awaitable[object]], callers: int, seconds: float, clock: Clock
) -> float:
    """Return the requests per second that complete in a closed loop of callers.

    Args:
        send: sends one request; gets the number of the caller, and the number of its earlier requests.
        callers: number of callers.
        seconds: duration.
        clock: monotonic nanoseconds.
    """
    end_ns = clock() + round(seconds * 1e9)
    completed = 0

    async def send_repeatedly(caller: int) -> None:
        nonlocal completed
        sent = 0
        while clock() < end_ns:
            await send(caller, sent)
            sent += 1
            completed += clock() <= end_ns

    async with asyncio.TaskGroup() as group:
        for caller in range(callers):
            group.create_task(send_repeatedly(caller))
    return completed / seconds


class Meter:
    """Counts the requests of one kind that were due in a window.

    Latency runs from the instant a request was *due*, not from when it was sent, so a delayed sender does not hide the
    wait (coordinated omission).

    Args:
        slo_ns: a response within this time is on time.

    Attributes:
        sent: requests that were due.
        on_time: requests with a response within the objective.
        lost: requests that ended without a response, by the class name of the error.
        latency: latency of the responses.
    """

    def __init__(self, slo_ns: int) -> None:
        self.slo_ns = slo_ns
        self.sent = 0
        self.on_time = 0
        self.lost: dict[str, int] = {}
        self.latency = si.LatencyHistogram()

    def answered(self, latency_ns: int) -> None:
        """Count a response."""
        self.latency.record_ns(latency_ns)
        if latency_ns <= self.slo_ns:
            self.on_time += 1

    def failed(self, error: BaseException) -> None:
        """Count a request that ended without a response."""
        name = type(error).__name__
        self.lost[name] = self.lost.get(name, 0) + 1

    @property
    def ended(self) -> int:
        """Number of requests with a response or an error."""
        return self.latency.count + sum(self.lost.values())

    def quantile_s(self, q: float) -> float:
        """Return a latency quantile in seconds over all requests; infinite if it falls on a lost request.

        Without the lost requests, an overloaded service would look fast.
        """
        responses = self.latency.count
        rank = q * self.ended
        return self.latency.quantile(rank / responses) if 0 < rank <= responses else math.inf

    @property
    def share_on_time(self) -> float:
        """Share of the requests that ended, lost ones included, from 0 to 1; 0 before the first."""
        return self.on_time / self.ended if self.ended else 0.0
