"""Calls of the model with some requests: the batch that it is given, and the rows that come back."""

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from streaminfer._internal.own_arrays import own_arrays
from streaminfer.batching.assembly.assembler import AssembledBatch, Assembler
from streaminfer.batching.assembly.unbatch import PLAIN, split_rows
from streaminfer.batching.queue._ticket_cy import Ticket
from streaminfer.errors import BackendError
from streaminfer.protocols import Clock, adapt, is_backend
from streaminfer.request import Batch

__all__ = ["ModelCalls", "Part", "make_assembler"]


class Part(NamedTuple):
    """The requests of a batch, or some of them.

    Attributes:
        inputs: of each row, prepared.
        requests: of each row.
        deadline_ns: the latest deadline of the rows; ``None`` where one has none.
        tickets: of each row.
    """

    inputs: list[Any]
    requests: list[Any]
    deadline_ns: int | None
    tickets: list[Ticket]


class _PartOfBatch(AssembledBatch):
    """Rows that are sent again."""

    __slots__ = ()

    is_part = True


class ModelCalls:
    """Calls of one backend or batch function; belongs to one event loop at a time.

    Args:
        inner: the backend or function.
        stack: whether it is given stacked arrays, or a list.
        assembler: puts inputs together.
        source: name of the model, for messages.
        clock: returns monotonic nanoseconds.

    Attributes:
        assembler: puts inputs together; may be replaced.
        copies: the model may reuse its output memory, so outputs are copied before the next call.
        infer: the backend's; ``None`` for a function.
    """

    def __init__(self, inner: Any, *, stack: bool, assembler: Assembler, source: str, clock: Clock) -> None:
        self._inner = inner
        self._stack = stack
        self._source = source
        self._clock = clock
        self.assembler = assembler
        self.copies = not adapt(inner).capabilities().returns_new_arrays
        self.infer: Callable[[Batch], Any] | None = inner.infer if is_backend(inner) else None

    def make_batch(self, part: Part, kind: type[AssembledBatch] = AssembledBatch) -> AssembledBatch:
        """Return what a backend is given."""
        size = len(part.inputs)
        return kind(
            functools.partial(self.assembler.assemble, part.inputs) if self._stack else part.inputs.copy,
            part.requests,
            part.deadline_ns,
            self._clock,
            size if self.assembler.plain else self.assembler.padded_size(size),
            part.tickets,
        )

    async def send(self, part: Part) -> tuple[list[Any] | BackendError, int]:
        """Call the model once, with requests of a batch that failed.

        Args:
            part: some of them.

        Returns:
            The rows, or an error for all of them, and the instant at which the inputs stood together.
        """
        if self.infer is not None:
            batch = self.make_batch(part, _PartOfBatch)
            results = await self.infer(batch)
            assembled_ns = batch.assembled_ns or self._clock()
        else:
            await asyncio.sleep(0)  # a function runs on the loop: others have a turn first
            inputs = self.assembler.assemble(part.inputs)
            assembled_ns = self._clock()
            results = self._inner(inputs)
            if type(results) not in PLAIN and inspect.isawaitable(results):
                results = await results
        if self.copies:
            results = own_arrays(results)
        size = len(part.inputs)
        padded = 0 if self.assembler.plain else self.assembler.padded_size(size)
        return split_rows(results, size, self._source, padded), assembled_ns


def make_assembler(inner: Any, **settings: Any) -> Assembler:
    """Return an `Assembler` of some settings for what a backend or function reads."""
    return Assembler(batch_axes=adapt(inner).capabilities().batch_axes, **settings)
