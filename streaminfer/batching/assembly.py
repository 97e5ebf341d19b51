"""From what each request brought to what the model reads: checked row by row, stacked on the axis the backend names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from streaminfer.errors import InvalidInput
from streaminfer.request import Batch, Request

__all__ = ["SCALARS", "AssembledBatch", "prepare", "stack_rows"]

SCALARS = frozenset((float, bool, complex))
"""Types that numpy stacks as they are, whatever the value."""


class AssembledBatch(Batch):
    """A batch whose inputs are put together at the first reading, by whoever reads them.

    A backend that runs in a thread so copies megabytes of images there and not on the event loop.
    """

    __slots__ = ("_assemble", "_clock", "_stacked", "assembled_ns")

    def __init__(
        self,
        assemble: Callable[[], Any],
        rows: Sequence[Request],
        deadline_ns: int | None,
        clock: Callable[[], int],
    ) -> None:
        self._assemble: Callable[[], Any] | None = assemble
        self._stacked: Any = None
        self._clock = clock
        self.assembled_ns = 0
        self.rows = rows
        self.deadline_ns = deadline_ns

    @property
    def inputs(self) -> Any:
        """What the model reads, with the batch axis."""
        if self._assemble is not None:
            self._stacked = self._assemble()
            self._assemble = None
            self.assembled_ns = self._clock()
        return self._stacked


def prepare(inputs: Any) -> Any:
    """What one request brought, in a form that can be stacked.

    Args:
        inputs: a number, a string, an array of any shape and dtype but object, what ``numpy.asarray`` makes such an
            array of, or a mapping of names to these.

    Returns:
        The same object where it can be stacked as it is, else an array.

    Raises:
        InvalidInput: it cannot be stacked.
    """
    kind = type(inputs)
    if kind is np.ndarray:
        if inputs.dtype.hasobject:
            raise InvalidInput(_unstackable(inputs))
        return inputs
    if kind in SCALARS:
        return inputs
    if kind is int or kind is str or kind is bytes:
        _check_exact(inputs)
        return inputs
    if isinstance(inputs, Mapping):
        return {name: prepare(value) for name, value in inputs.items()}
    try:
        array = np.asarray(inputs)
    except Exception as error:  # a ragged list, or an object whose own conversion fails in its own way
        raise InvalidInput(f"{_unstackable(inputs)} ({error})") from error
    if array.dtype.hasobject:
        raise InvalidInput(_unstackable(inputs))
    return array


def _check_exact(value: int | str | bytes) -> None:
    """Refuses what numpy would change, and with it, perhaps, the type of everybody's rows."""
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise InvalidInput(f"inputs: expected a whole number of 64 bits, got {value}")
    elif value[-1:] in {"\0", b"\0"}:
        raise InvalidInput(f"inputs: expected text without a NUL at its end, which numpy drops, got {value!r}")


def stack_rows(rows: list[Any], batch_axes: Mapping[str, int]) -> Any:
    """Puts alike rows together along a new axis.

    Args:
        rows: at least one; what :func:`prepare` returned, all alike.
        batch_axes: for mappings, the position of the new axis for each name, 0 where it names none.

    Returns:
        A new C-contiguous array, or a mapping of such arrays.
    """
    first = rows[0]
    if type(first) is dict:
        return {name: _stack([row[name] for row in rows], batch_axes.get(name, 0)) for name in first}
    if not batch_axes:
        return np.array(rows)
    return _stack(rows, next(iter(batch_axes.values())) if len(batch_axes) == 1 else 0)


def _stack(rows: list[Any], axis: int) -> Any:
    first = rows[0]
    if type(first) is dict:
        return {name: _stack([row[name] for row in rows], axis) for name in first}
    if axis == 0:
        return np.array(rows)  # of rows of one shape and dtype it copies each once; np.stack takes longer
    return np.ascontiguousarray(np.moveaxis(np.array(rows), 0, axis))  # twice as fast as np.stack on small rows


def _unstackable(inputs: object) -> str:
    return (
        f"inputs: expected a number, an array, or a mapping of arrays, got {type(inputs).__name__}"
        " that numpy cannot stack; a batcher with stack=False passes a list instead"
    )
