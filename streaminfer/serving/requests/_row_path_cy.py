"""Fast path for one-row requests like an earlier one: inputs are views of the message, outputs follow its old head.

Most clients send few kinds of requests, each many times. The path stores types, sizes and the head of the response of
the first request of a kind. A later request is only compared with these, and not described again. If anything differs,
the request takes the long path, which also words the errors.

One source, compiled with the C types of ``_row_path_cy.pxd``, or run as Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy import ndarray, uint8

from streaminfer.backends.triton.dtypes import dtype_of

if TYPE_CHECKING:
    from streaminfer.serving.requests.tensors import Tensor

__all__ = ["RowReader", "RowReply", "join_parts"]

_MAX_COPIED_BYTES = 1 << 10
"""Contents up to this size, in bytes, are copied, which is faster than a check whether a view is aligned."""
_MAX_JOINED_BYTES = 1 << 16
"""Responses up to this size, in bytes, are sent in one piece."""


class RowReader:
    """Reads the inputs of one row, if all of them are numbers.

    Args:
        tensors: the inputs.
        takes_one: whether the model reads its only input as an array, not by name.
    """

    def __init__(self, tensors: list[Tensor], takes_one: bool) -> None:
        self._names = [tensor.name for tensor in tensors]
        self._dtypes: list[Any] = [dtype_of(tensor.datatype) for tensor in tensors]
        self._shapes = [tuple(tensor.shape[1:]) for tensor in tensors]  # without the axis of rows
        self._sizes = [tensor.elements * dtype.itemsize for tensor, dtype in zip(tensors, self._dtypes, strict=True)]
        self._takes_one = takes_one

    def read(self, content: Any, start: int, spans: list[tuple[int, int]]) -> Any:
        """Return the inputs, as views unless small or unaligned; ``None`` if a size differs from the input's.

        Args:
            content: the message.
            start: offset of the spans in it.
            spans: start and end of each input.
        """
        count = len(self._names)
        if len(spans) != count:
            return None
        by_name: dict[str, Any] = {}
        for position in range(count):
            first, end = spans[position]
            if end - first != self._sizes[position]:
                return None
            if end - first <= _MAX_COPIED_BYTES:
                part = content[start + first : start + end]
                array = ndarray(
                    self._shapes[position], self._dtypes[position], part if type(part) is bytes else bytes(part)
                )
            else:
                array = ndarray(self._shapes[position], self._dtypes[position], content, start + first)
                if not array.flags.aligned:
                    array = array.copy()  # some libraries cannot read unaligned arrays
            if self._takes_one:
                return array
            by_name[self._names[position]] = array
        return by_name


class RowReply:
    """Renders the outputs of one row if they are like those of an earlier response.

    Args:
        outputs: the outputs of that response, as the stack returned them.
        names: names of the outputs in the response, in its order.
        pieces: pieces of the response, one before each output.

    Attributes:
        size: size of the whole response, in bytes.
        headers: headers of the response.
    """

    def __init__(self, outputs: Any, names: list[str], pieces: list[bytes], headers: Sequence[Any]) -> None:
        self._kind: Any = type(outputs)
        self._names = names
        self._pieces = pieces
        self._has_all = self._kind is not dict or len(outputs) == len(names)
        arrays = [outputs[name] for name in names] if self._kind is dict else [outputs]
        self._dtypes = [array.dtype for array in arrays]
        self._shapes = [array.shape for array in arrays]
        self.headers = headers
        self.size = sum(map(len, pieces)) + sum(array.nbytes for array in arrays)

    def render(self, outputs: Any) -> list[Any] | None:
        """Return the parts of the response; ``None`` if the outputs differ in kind, type or shape.

        Args:
            outputs: the outputs, as the stack returned them.
        """
        count = len(self._names)
        if type(outputs) is not self._kind or (self._kind is dict and self._has_all and len(outputs) != count):
            return None
        parts: list[Any] = []
        for position in range(count):
            array = outputs.get(self._names[position]) if self._kind is dict else outputs
            if (
                type(array) is not ndarray
                or array.dtype is not self._dtypes[position]
                or array.shape != self._shapes[position]
                or not array.flags.c_contiguous
            ):
                return None
            parts.append(self._pieces[position])
            parts.append(array)
        return parts


def join_parts(parts: list[Any], size: int) -> list[Any]:
    """Return the body, in one piece if it is small; otherwise in parts, with arrays as bytes.

    Args:
        parts: parts of the body.
        size: size of all parts, in bytes.
    """
    if size <= _MAX_JOINED_BYTES:
        return [b"".join(parts)]
    return [part.reshape(-1).view(uint8).data if isinstance(part, ndarray) else part for part in parts]
