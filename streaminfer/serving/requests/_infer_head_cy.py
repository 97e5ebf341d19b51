"""Head of a request, in both protocols: the request without the content of its tensors.

One source, compiled with the C types of ``_infer_head_cy.pxd``, or run as Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from streaminfer.errors import InvalidInput
from streaminfer.serving.deadlines import RequestSettings, read_settings
from streaminfer.serving.requests._row_path_cy import RowReader, RowReply
from streaminfer.serving.requests.tensors import decode, decode_list

if TYPE_CHECKING:
    import numpy.typing as npt

    from streaminfer.serving.requests.infer_request import HeadReader

__all__ = ["InferHead"]


class InferHead:
    """A request to a model without the content of its tensors; requests with the same head can share one object.

    Args:
        identity: the client's id of the request.
        reader: the reader that has read the inputs.
        parameters: parameters of the request.
        outputs: the requested outputs, by name, and whether as bytes; ``None``: all outputs.
        binary: whether outputs that are not named are returned as bytes.

    Attributes:
        id: the client's id of the request, which the response repeats.
        tensors: the inputs.
        rows: number of rows of the inputs.
        takes_one: whether the model reads its only input as an array, not by name.
        parameters: parameters of the request.
        settings: the settings in the parameters.
        outputs: the requested outputs, by name, and whether as bytes; ``None``: all outputs.
        binary: whether outputs that are not named are returned as bytes.
        spans: over HTTP, start and end of each content after the head.
        content_size: over HTTP, size of all contents together.
        is_reusable: whether later requests can share the head: it has no elements, id or text of one request.
        rendered: the head of the latest response, with the outputs that it describes.
        row_reader: reads a later request of one row with this head; ``None``: the head does not allow that.
        row_reply: renders a response that is like the last one; ``None``: there was none.
    """

    def __init__(
        self,
        identity: str,
        reader: HeadReader,
        parameters: Mapping[str, Any],
        outputs: Mapping[str, bool] | None,
        *,
        binary: bool,
    ) -> None:
        self.id = identity
        self.tensors = reader.tensors
        self.rows = reader.rows
        self.takes_one = reader.takes_one()
        self.parameters = parameters
        self.settings: RequestSettings = read_settings({}, parameters)
        self.outputs = outputs or None
        self.binary = binary
        self.rendered: tuple[Any, bytes] | None = None
        self._keeps_bytes = reader.keeps_bytes
        self.spans: list[tuple[int, int]] = []
        position = 0
        for tensor in self.tensors:
            if tensor.size is not None:
                self.spans.append((position, position + tensor.size))
                position += tensor.size
        self.content_size = position
        self._contents = sum(tensor.data is None for tensor in self.tensors)
        # a head with text of the client is not stored, because it may name a person
        self.is_reusable = (
            self._contents == len(self.tensors)
            and not identity
            and not any(isinstance(value, (str, list, dict)) for value in parameters.values())
        )
        self.row_reply: RowReply | None = None
        self.row_reader: RowReader | None = None
        if self.is_reusable and self.rows == 1 and all(tensor.is_numbers for tensor in self.tensors):
            self.row_reader = RowReader(self.tensors, self.takes_one)

    def read(self, content: Any, start: int, spans: list[tuple[int, int]]) -> list[Any]:
        """Return the inputs of each row in the form that the stack takes, as views of the content where possible.

        Args:
            content: the content of all tensors.
            start: offset of the spans in it.
            spans: spans of the tensors that have a content, in their order.

        Raises:
            InvalidInput: a content does not match its tensor.
        """
        if self.row_reader is not None:
            row = self.row_reader.read(content, start, spans)
            if row is not None:
                return [row]
        if len(spans) != self._contents:
            raise InvalidInput(f"inputs: expected contents of {self._contents}, got {len(spans)}")
        view = memoryview(content)[start:]
        arrays: dict[str, npt.NDArray[Any]] = {}
        contents = iter(spans)
        for tensor in self.tensors:
            if tensor.data is None:
                first, end = next(contents)
                arrays[tensor.name] = decode(tensor, view[first:end], keeps_bytes=self._keeps_bytes)
            else:
                arrays[tensor.name] = decode_list(tensor, keeps_bytes=self._keeps_bytes)
        if not self.takes_one:
            return [{name: array[row, ...] for name, array in arrays.items()} for row in range(self.rows)]
        only_input = arrays[self.tensors[0].name]
        return [only_input[row, ...] for row in range(self.rows)]  # arrays, even if a row has no axes
