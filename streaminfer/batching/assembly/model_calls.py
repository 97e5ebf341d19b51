"""Calls of the model with the requests of a batch, and the rows of its results."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from streaminfer._internal.own_arrays import own_arrays
from streaminfer._runtime.stack_clock import unfailing
from streaminfer.batching.assembly.assembler import AssembledBatch, Assembler
from streaminfer.batching.assembly.unbatch import PLAIN, split_rows
from streaminfer.batching.assembly.undelivered import without_copies
from streaminfer.batching.queue._ticket_cy import NEVER, Execution
from streaminfer.errors import BackendError
from streaminfer.protocols import Clock, adapt, is_backend
from streaminfer.request import Batch

__all__ = ["ModelCalls", "make_assembler"]


class _PartOfBatch(AssembledBatch):
    """Rows of a failed batch that are sent again."""

    __slots__ = ()

    is_part = True


class ModelCalls:
    """Calls of one backend or batch function; belongs to one event loop at a time.

    Args:
        inner: the backend or function.
        stack: whether the model gets stacked arrays, or a list.
        assembler: assembles inputs.
        source: name of the model, for messages.
        clock: returns monotonic nanoseconds.

    Attributes:
        inner: the same.
        stack: the same.
        assembler: the same; may be replaced.
        source: the same.
        clock: the same, but it raises nothing.
        copies: the model may reuse its output memory, so outputs are copied before the next call.
        infer: the backend's ``infer``; ``None`` for a function.
    """

    def __init__(self, inner: Any, *, stack: bool, assembler: Assembler, source: str, clock: Clock) -> None:
        self.inner = inner
        self.stack = stack
        self.assembler = assembler
        self.source = source
        self.clock = unfailing(clock)
        self.copies = not adapt(inner).capabilities().returns_new_arrays
        self.infer: Callable[[Batch], Any] | None = inner.infer if is_backend(inner) else None

    def bind_clock(self, clock: Clock) -> None:
        """Use another clock; if it raises, the callers of a batch still get their results."""
        self.clock = unfailing(clock)

    def make_batch(self, execution: Execution, kind: type[AssembledBatch] = AssembledBatch) -> AssembledBatch:
        """Return the batch for a backend."""
        inputs = execution.inputs
        size = len(inputs)
        return kind(
            functools.partial(self.assembler.assemble, inputs) if self.stack else inputs.copy,
            [ticket.request for ticket in execution.tickets],
            None if execution.deadline_ns == NEVER else execution.deadline_ns,
            self.clock,
            size if self.assembler.plain else self.assembler.padded_size(size),
            execution.tickets,
        )

    async def send(self, part: Execution) -> tuple[list[Any] | BackendError, int]:
        """Call the model once, with requests of a batch that failed, or with examples whose batches do not count.

        Args:
            part: the requests.

        Returns:
            The rows, or an error for all of them, and the instant at which the inputs were assembled.
        """
        if self.infer is not None:
            batch = self.make_batch(part, _PartOfBatch)
            results = await self.infer(batch)
            assembled_ns = batch.assembled_ns or self.clock()
        else:
            inputs = self.assembler.assemble(part.inputs)
            assembled_ns = self.clock()
            results = self.inner(inputs)
            if type(results) not in PLAIN and inspect.isawaitable(results):
                results = await results
        if self.copies:
            results = own_arrays(results)
        size = len(part.inputs)
        padded = self.assembler.padded_size(size)
        if type(results) is list:
            results = without_copies(results, size, padded)
        return split_rows(results, size, self.source, padded), assembled_ns


def make_assembler(inner: Any, **settings: Any) -> Assembler:
    """Return an `Assembler` with some settings for the inputs of a backend or function."""
    return Assembler(batch_axes=adapt(inner).capabilities().batch_axes, **settings)
