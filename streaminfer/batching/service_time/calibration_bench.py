"""Batches of a calibration: the service and backend that they use, and their durations."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

import attrs

from streaminfer.batching.assembly.assembler import Assembler
from streaminfer.batching.policy import Decision
from streaminfer.batching.queue._queue_cy import RequestQueue
from streaminfer.errors import BackendError, InvalidInput, text_of_error
from streaminfer.protocols import Capabilities, ExampleInputs, Node
from streaminfer.request import Batch, Request

__all__ = ["CalibrationBench", "CalibrationPolicy", "Learn", "Observation", "UncountedBackend"]

LIMIT_IN_SLOS = 2
"""No larger sizes follow a batch that takes this many times the latency objective: they are late for certain."""
LIMIT_NS = 1_000_000_000
"""The same limit without an objective."""

Learn = Callable[[int, int, int, bool, int], object]
"""The ``observe`` of a policy."""


class Observation(NamedTuple):
    """Report of one batch to a policy."""

    size: int
    duration_ns: int
    now_ns: int


class CalibrationPolicy:
    """Policy that sends all queued requests at once and stores the durations of batches.

    Attributes:
        observations: observations since it was last emptied.
    """

    def __init__(self) -> None:
        self.observations: list[Observation] = []

    def decide(self, queue: RequestQueue, now_ns: int, free_workers: int) -> Decision:  # noqa: ARG002 - the protocol
        """Return all queued requests as a batch."""
        return Decision(queue.first(queue.queued), "calibration")

    def observe(self, size: int, duration_ns: int, now_ns: int, cancelled: bool = False, _bucket: int = 0) -> None:
        """Store the observation of a batch."""
        if not cancelled:
            self.observations.append(Observation(size, duration_ns, now_ns))


class UncountedBackend(Node):
    """The backend of a calibration, which bypasses its counters and the layers around it."""

    def __init__(self, example: ExampleInputs, name: str, returns_new_arrays: bool) -> None:
        self.infer = example.infer
        self.infer_now = example.infer_now
        self.name = name
        # isolates_rows: a failed batch is not sent again in parts
        self._offered = Capabilities(returns_new_arrays=returns_new_arrays, isolates_rows=True)

    def capabilities(self) -> Capabilities:
        """Return the backend's capabilities that the calibration's service needs."""
        return self._offered


@attrs.frozen(eq=False)
class CalibrationBench:
    """Runs batches of one request many times.

    Attributes:
        service: service for the batches, with the policy.
        policy: stores their durations.
        example: inputs of one request.
        assembler: assembler of the batcher.
        slo_ns: the latency objective in nanoseconds; ``None``: there is none.
        learn: the ``observe`` of the batcher's policy; ``None``: it learns nothing, and batches only warm the model.
        limit: called with a length bucket and the most rows that fit into memory, if not all sizes do.
        validate: checks a request like live ones.
    """

    service: Any
    policy: CalibrationPolicy
    example: ExampleInputs
    assembler: Assembler
    slo_ns: int | None
    learn: Learn | None
    limit: Callable[[int, int], None]
    validate: Callable[[Request], None] | None

    @property
    def limit_ns(self) -> int:
        """Nanoseconds of a batch after which no larger sizes follow."""
        return LIMIT_NS if self.slo_ns is None else LIMIT_IN_SLOS * self.slo_ns

    async def run(self, row: Any, size: int) -> list[Observation]:
        """Send ``size`` requests at once; if bytes are limited, they may form more than one batch.

        Raises:
            BackendError: the backend failed, for the batch or for a row.
        """
        self.policy.observations.clear()
        tickets = [self.service.submit(Request(row), row, None, 0) for _ in range(size)]
        try:
            results = await asyncio.gather(*(ticket.future for ticket in tickets), return_exceptions=True)
        except BaseException:  # a batch that ends in this iteration leaves cancelled requests to their caller
            for ticket in tickets:
                self.service.abandon(ticket)
            raise
        for result in results:
            if isinstance(result, BackendError | InvalidInput):
                raise result
            if isinstance(result, BaseException):
                raise BackendError(text_of_error(result)) from result
        return self.policy.observations.copy()

    async def run_on_each(self, row: Any, size: int) -> list[Observation]:
        """Do the same as :meth:`run`, then run one such batch on each worker."""
        observations = await self.run(row, size)
        if self.example.infer_on_each is not None:
            rows = max(one.size for one in observations)
            prepared = self.assembler.prepare(row)
            await self.example.infer_on_each(Batch(self.assembler.assemble([prepared] * rows), [Request(row)] * rows))
        return observations
