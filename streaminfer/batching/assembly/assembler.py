"""From the inputs of requests to those of the model: checked per row, stacked on the axis that the backend names.

An `Assembler` knows all limits and shapes of a batch except the policy: buckets, bytes, padded elements, the sizes for
which a model was compiled. It checks each request on arrival, chooses rows that can share a batch, and writes them,
large ones into reused buffers (:mod:`~streaminfer.batching.assembly.buffers`).

*When.* The reader of :attr:`AssembledBatch.inputs` writes the rows: the backend's worker thread, just before the model
runs. Writing each row on arrival was measured (``benchmarks/run.py assembly``) and is not done. A copy costs the same
at either time, 0.3 µs for 1 KB and 50 for 600 KB, but on the event loop it delays all requests. Rows written in the
order of arrival would also be moved again, because the policy orders rows by deadline, rejects some and leaves others
for later, and callers cancel. It would save only the copy's share of a worker's time, 2 % for silero and 0.5 % for
BlazeFace. If a model is so fast that the copy counts, run one more batch in flight than the device runs
(``max_in_flight``, a second worker): it is written while the previous one runs, still with the policy's choice.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.text import has_text
from streaminfer._internal.validation import check_ascending, check_count, expected
from streaminfer.batching.assembly._compatibility_cy import RaggedCompatibility, kind_of, take_stackable
from streaminfer.batching.assembly._prepare_cy import prepare
from streaminfer.batching.assembly.buckets import Buckets, row_bytes
from streaminfer.batching.assembly.buffers import BufferPool
from streaminfer.batching.assembly.padding import make_mask, pad_rows
from streaminfer.batching.assembly.row_costs import CostLimit, first_within
from streaminfer.batching.assembly.stacking import stack_column
from streaminfer.batching.queue._ticket_cy import Ticket, abandoned_rows
from streaminfer.errors import InvalidInput
from streaminfer.request import Batch, Request

__all__ = ["AssembledBatch", "Assembler"]

_POOL_BYTES = 1 << 28
POOLED_FROM = 1 << 23
"""Bytes from which a batch is written into a reused buffer; measured, see ``buffers``."""

_UNREAD: Any = object()


class AssembledBatch(Batch):
    """A batch that is assembled when its inputs are first read, by the reader.

    A backend with a thread thus copies megabytes of images there and not on the event loop.
    """

    __slots__ = ("_assemble", "_clock", "_size", "_stacked", "_tickets", "assembled_ns")

    def __init__(
        self,
        assemble: Callable[[], Any],
        rows: Sequence[Request],
        deadline_ns: int | None,
        clock: Callable[[], int],
        size: int | None = None,
        tickets: Sequence[Ticket] = (),
    ) -> None:
        self._tickets = tickets
        self._size = len(rows) if size is None else size
        self._assemble = assemble
        self._stacked: Any = _UNREAD
        self._clock = clock
        self.assembled_ns = 0
        self.rows = rows
        self.deadline_ns = deadline_ns

    @property
    def size(self) -> int:
        """Number of rows of the inputs."""
        return self._size

    @property
    def inputs(self) -> Any:
        """Inputs of the model, with the batch axis."""
        if self._stacked is _UNREAD:
            self._stacked = self._assemble()
            self.assembled_ns = self._clock()
        return self._stacked

    def left(self, now_ns: int) -> Sequence[int]:
        """Return the rows without a caller that waits."""
        return abandoned_rows(self._tickets, now_ns)

    def again(self) -> "AssembledBatch":
        """Return the same rows, to be assembled again."""
        return type(self)(self._assemble, self.rows, self.deadline_ns, self._clock, self._size, self._tickets)


class Assembler:
    """Chooses and writes the rows of batches; created once for each batcher.

    :meth:`prepare`, :meth:`bucket_of` and :meth:`assemble` may be called from any thread. The assembler holds at most
    256 MB of buffers.

    Args:
        stack: whether the model gets arrays with a batch axis. Otherwise it gets a list, and of the arguments below
            only ``cost_limit`` applies.
        batch_axes: for mappings, the position of the batch axis by input name; 0 for inputs that it does not name.
        max_batch_size: the most rows.
        buckets: lengths to which ragged rows are padded.
        max_batch_bytes: the most bytes of a batch, padding included. Text counts 4 bytes a character.
        preferred_sizes: the only batch sizes that the model gets, ascending. A smaller batch is padded with copies of
            its last row, whose results are dropped. The last size is the largest batch.
        cost_limit: the most that a batch may cost.

    Attributes:
        plain: none of these limits and shapes apply, so all rows of one kind can share a batch.
        buckets: the same.
        caps: the most rows in a batch of each bucket, by count and elements; bytes may allow fewer. One entry without
            buckets.

    Raises:
        TypeError, ValueError: an argument has the wrong type, is out of range, or needs ``stack=True``.
    """

    def __init__(
        self,
        *,
        stack: bool,
        batch_axes: Mapping[str, int],
        max_batch_size: int,
        buckets: Buckets | None = None,
        max_batch_bytes: int | None = None,
        preferred_sizes: Sequence[int] | None = None,
        cost_limit: CostLimit | None = None,
    ) -> None:
        self._sizes: tuple[int, ...] = ()
        if preferred_sizes is not None:
            expectation = f"ascending whole numbers from 1 to max_batch_size={max_batch_size}"
            self._sizes = check_ascending("preferred_sizes", preferred_sizes, expectation, at_most=max_batch_size)
        if max_batch_bytes is not None:
            check_count("max_batch_bytes", max_batch_bytes)
        settings = {"buckets": buckets, "max_batch_bytes": max_batch_bytes, "preferred_sizes": preferred_sizes}
        if not stack:
            for name, value in settings.items():
                if value is not None:
                    raise ValueError(
                        expected(name, "None with stack=False, which passes on what requests bring", value)
                    )
        self.plain = cost_limit is None and all(value is None for value in settings.values())
        self._cost_limit = cost_limit
        self._stack = stack
        self._axes = batch_axes
        self.buckets = buckets
        self._max_bytes = max_batch_bytes
        self._pool = BufferPool(_POOL_BYTES)
        if buckets is None:
            self._ragged: RaggedCompatibility | None = None
            self.caps = [self._largest(max_batch_size)]
            return
        self._ragged = RaggedCompatibility(buckets.lengths, buckets.axis, buckets.inputs)
        elements = buckets.max_elements
        if elements is not None and self.padded_size(1) * buckets.lengths[-1] > elements:
            raise ValueError(
                expected("max_elements", f"room for the smallest of preferred_sizes {self._sizes}", elements)
            )
        self.caps = [
            self._largest(max_batch_size if elements is None else min(max_batch_size, elements // length))
            for length in buckets.lengths
        ]

    def prepare(self, inputs: Any) -> Any:
        """Return a request's inputs in a form for a batch.

        Raises:
            InvalidInput: they cannot be stacked or padded, are longer than every bucket, or too large for any batch.
        """
        if not self._stack:
            return inputs
        prepared = prepare(inputs)
        if self.buckets is not None:
            self.buckets.check(prepared)
        if self._max_bytes is not None:
            needed = self.padded_size(1) * self._bytes(prepared)
            if needed > self._max_bytes:
                raise InvalidInput(
                    f"inputs: expected at most {self._max_bytes} bytes in the smallest batch (max_batch_bytes), "
                    f"got {needed}"
                )
        return prepared

    def bucket_of(self, prepared: Any) -> int:
        """Return the position of a row's bucket among the lengths; 0 without buckets."""
        return 0 if self._ragged is None else self._ragged.bucket_of(prepared)

    def cost_of(self, prepared: Any) -> float:
        """Return the cost of a row; 0.0 if costs are not limited.

        Raises:
            InvalidInput: the cost exceeds the limit of a batch.
        """
        return 0.0 if self._cost_limit is None else self._cost_limit.cost_of(prepared, self.padded_size(1))

    def kind_of(self, prepared: Any) -> Hashable:
        """Return a key that is equal for two rows of a bucket exactly if they can be stacked."""
        return kind_of(prepared) if self._ragged is None else self._ragged.kind_of(prepared)  # type: ignore[no-any-return]

    def as_padded(self, prepared: Any) -> Any:
        """Return one request's row as the model will get it, without the batch axis, to check it against the model.

        Args:
            prepared: from :meth:`prepare`.

        Returns:
            The row padded to its bucket, with the mask; unchanged without buckets. It must not be written to.
        """
        buckets = self.buckets
        if buckets is None:
            return prepared
        ragged = buckets.lengths_of([prepared])
        is_full = ragged[0] == [ragged[1]]
        if type(prepared) is not dict:
            return prepared if is_full else self._column(None, [prepared], ragged, 0)[0]
        padded = prepared.copy()
        for name, value in prepared.items():
            if not is_full and buckets.is_ragged(name, value):
                padded[name] = self._column(name, [value], ragged, 0)[0]
        if buckets.mask is not None:
            padded[buckets.mask] = make_mask(*ragged, buckets.mask_dtype)[0]
        return padded

    def sizes_of(self, bucket: int) -> list[int]:
        """Return the batch sizes of a bucket to measure: ``preferred_sizes``, else 1, 2, 4, … and the largest."""
        cap = self.caps[bucket]
        if self._sizes:
            return [size for size in self._sizes if size <= cap]
        return [*(1 << power for power in range((cap - 1).bit_length())), cap]

    def padded_size(self, count: int) -> int:
        """Return the number of rows that the model gets for a batch of ``count`` requests."""
        for size in self._sizes:
            if size >= count:
                return size
        return count

    def select(self, tickets: list[Any], shorter_too: bool = False) -> list[Any]:
        """Return the tickets that share a batch with the first one.

        Args:
            tickets: at least one, the most urgent first; their ``inputs`` are prepared.
            shorter_too: also take rows of shorter buckets than the first one's, padded to its length.

        Returns:
            The first ticket and, in their order, those whose rows can be stacked with its row, within the limits.
        """
        if self.plain:
            return take_stackable(tickets, self.caps[0])
        first = tickets[0].inputs
        limit = self.caps[self.bucket_of(first)]
        chosen = (
            take_stackable(tickets, limit) if self._ragged is None else self._ragged.choose(tickets, limit, shorter_too)
        )
        if self._max_bytes is None:
            return chosen
        # all rows are padded to the size of the first one, except texts
        sizes = (self._bytes(it.inputs) for it in chosen) if has_text(first) else repeat(self._bytes(first))
        return first_within(chosen, sizes, self._max_bytes, self.padded_size)

    def within_cost(self, tickets: Sequence[Any]) -> Sequence[Any]:
        """Return the first ticket, and those that fit with it into the cost limit of a batch."""
        if self._cost_limit is None:
            return tickets
        costs = (ticket.cost for ticket in tickets)
        return first_within(tickets, costs, self._cost_limit.max_batch_cost, self.padded_size)

    def assemble(self, rows: list[Any]) -> Any:
        """Return the inputs for the model.

        Args:
            rows: at least one; prepared, and selected together.

        Returns:
            With ``stack``, a C-contiguous array or a mapping of such arrays, :meth:`padded_size` rows along the batch
            axis; their memory is reused when no reference to them or to views of them is left. Otherwise a list.
        """
        if not self._stack:
            return rows.copy()
        missing = self.padded_size(len(rows)) - len(rows)
        if missing:
            rows = rows + rows[-1:] * missing
        buckets, axes, first = self.buckets, self._axes, rows[0]
        ragged = None if buckets is None else buckets.lengths_of(rows)
        if type(first) is not dict:
            only_axis = next(iter(axes.values())) if len(axes) == 1 else 0  # no input is named, or several are
            return self._column(None, rows, ragged, only_axis)
        inputs = {name: self._column(name, [row[name] for row in rows], ragged, axes.get(name, 0)) for name in first}
        if buckets is not None and buckets.mask is not None and ragged is not None:
            mask = make_mask(*ragged, buckets.mask_dtype)
            inputs[buckets.mask] = np.ascontiguousarray(np.moveaxis(mask, 0, axes.get(buckets.mask, 0)))
        return inputs

    def _column(self, name: str | None, rows: list[Any], ragged: tuple[list[int], int] | None, axis: int) -> Any:
        """Return the rows of one input with the batch axis, padded if they are ragged.

        Args:
            name: name of the input; ``None``: requests are arrays.
            rows: at least one.
            ragged: the lengths of ragged rows, and the length to which they are padded; ``None`` without buckets.
            axis: position of the batch axis.
        """
        first, buckets = rows[0], self.buckets
        if ragged is not None and buckets is not None and min(ragged[0]) < ragged[1] and buckets.is_ragged(name, first):
            along = buckets.axis % first.ndim
            shape = (*first.shape[:along], ragged[1], *first.shape[along + 1 :])
            padded, by_row = self._new(len(rows), shape, first.dtype, axis)
            pad_rows(rows, ragged[0], along, buckets.pad_of(name), by_row)
            return padded
        small = type(first) is not np.ndarray or first.nbytes * len(rows) < POOLED_FROM or not first.ndim
        if small or first.dtype.hasobject:  # reused buffers cannot hold references to objects
            return stack_column(rows, axis)
        stacked, by_row = self._new(len(rows), first.shape, first.dtype, axis)
        for position, row in enumerate(rows):
            by_row[position] = row
        return stacked

    def _new(
        self, count: int, shape: tuple[int, ...], dtype: np.dtype[Any], batch_axis: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return an array for rows of a shape, and a view of it with the batch axis first."""
        if not dtype.isnative:
            dtype = dtype.newbyteorder("=")
        batch_axis %= len(shape) + 1
        full_shape = (*shape[:batch_axis], count, *shape[batch_axis:])
        large = count * math.prod(shape) * dtype.itemsize >= POOLED_FROM
        array = self._pool.take(full_shape, dtype) if large else np.empty(full_shape, dtype)
        return array, np.moveaxis(array, batch_axis, 0) if batch_axis else array

    def _bytes(self, prepared: Any) -> int:
        if self.buckets is None:
            return row_bytes(prepared)
        return row_bytes(prepared, (self.buckets, self.buckets.lengths[self.bucket_of(prepared)]))

    def _largest(self, limit: int) -> int:
        """Return the largest batch that is padded to at most ``limit`` rows."""
        return max((size for size in self._sizes if size <= limit), default=limit)
