"""One sender, which sends the requests of a schedule from its event loop."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import numpy as np

from streaminfer.loadtest.arrivals import Floats
from streaminfer.loadtest.sending.loops import OpenLoop, clock_of
from streaminfer.loadtest.sending.record import Record
from streaminfer.loadtest.sending.requests import Requests, check_inputs, check_service
from streaminfer.stack import Stack

__all__ = ["OnProgress", "Progress", "running", "send"]

_LEAD_S = 0.02
"""Seconds from the start of the run to the start of the schedule, so that the first request is not late."""


@attrs.frozen
class Progress:
    """Progress of a load test.

    Attributes:
        elapsed_s: seconds since the start.
        duration_s: seconds during which requests are due.
        sent: requests sent so far.
        requests: requests of the whole schedule.
        in_flight: requests sent and not completed.
    """

    elapsed_s: float
    duration_s: float
    sent: int
    requests: int
    in_flight: int


OnProgress = Callable[[Progress], None]


@contextlib.asynccontextmanager
async def running(service: Any) -> AsyncIterator[Any]:
    """Start a `Stack` that is not running, and stop it at the end; yield any other service unchanged."""
    if isinstance(service, Stack) and not service.ready:
        async with service:
            yield service
    else:
        yield service


async def send(
    service: Any,
    inputs: Any,
    due_s: Floats,
    *,
    drain_s: float,
    duration_s: float,
    progress: OnProgress | None = None,
    start_ns: int | None = None,
    first: int = 0,
    step: int = 1,
) -> Record:
    """Send requests from this event loop.

    Args:
        service: a running service.
        inputs: as for :func:`run`.
        due_s: due times in seconds from the start of the schedule.
        drain_s: as for :func:`run`.
        duration_s: duration that the progress reports.
        progress: as for :func:`run`.
        start_ns: instant at which the schedule begins; ``None``: almost at once.
        first: number of this sender's first request in the schedule of all senders.
        step: difference between the numbers of this sender's requests.
    """
    check_service(service)
    at = check_inputs(inputs)
    loop = asyncio.get_running_loop()
    clock = clock_of(loop)
    requests = Requests(service, (lambda number: at(first + step * number)) if step > 1 else at, due_s.size)
    gc.collect()  # so that it does not run early in the measurement
    start_ns = clock() + round(_LEAD_S * 1e9) if start_ns is None else start_ns
    due_ns = (start_ns + np.rint(due_s * 1e9).astype(np.int64)).tolist()
    sending = OpenLoop(requests.call, due_ns, on_result=requests.on_result, begin=requests.begin)
    reporting = loop.create_task(_report_progress(sending, progress, start_ns, clock, duration_s)) if progress else None
    try:
        await sending.run(drain_s=drain_s)
    finally:
        if reporting is not None:
            reporting.cancel()
            await asyncio.wait([reporting])
    if reporting is not None and not reporting.cancelled():
        reporting.result()
    return Record.of(sending, due_s, requests)


async def _report_progress(
    sending: OpenLoop, progress: OnProgress, start_ns: int, clock: Callable[[], int], duration_s: float
) -> None:
    while True:
        await asyncio.sleep(1.0)
        elapsed_s = (clock() - start_ns) / 1e9
        progress(Progress(elapsed_s, duration_s, sending.sent, len(sending.due_ns), sending.in_flight))
