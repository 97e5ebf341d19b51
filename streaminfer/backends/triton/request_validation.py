"""Validation of a request by the model's description: :class:`Signature`, and two additions for Triton.

Text is one of the two additions: NumPy has many types for it (a width in each), the protocol one; what is checked is
its shape. The other are inputs that a request may leave out: there is one signature for each set that was seen.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from streaminfer.backends.signature import NonFinite, Signature
from streaminfer.backends.triton.dtypes import TEXT, is_text
from streaminfer.backends.triton.model import ModelDescription
from streaminfer.errors import InvalidInput

__all__ = ["RequestValidator"]

_ANY_TEXT = np.array("", TEXT)
_MOST_SETS = 1024


class RequestValidator:
    """Validates the inputs of requests.

    Args:
        model: its description.
        non_finite: ``"reject"`` rejects floats that are not all finite.

    Attributes:
        whole: the signature with every input.
    """

    __slots__ = ("_inputs", "_model", "_names", "_non_finite", "_optional", "_required", "_sets", "_text", "whole")

    def __init__(self, model: ModelDescription, non_finite: NonFinite) -> None:
        self._inputs = [attrs.evolve(spec, is_optional=False) for spec in model.inputs]  # as those of a set
        self.whole = Signature(self._inputs, model.outputs, non_finite=non_finite)
        self._model = model
        self._non_finite = non_finite
        self._text = frozenset(spec.name for spec in model.inputs if spec.dtype == TEXT)
        self._sets: dict[frozenset[str], Signature] = {}
        self._names = frozenset(spec.name for spec in model.inputs)
        self._optional = model.optional
        required = self._names - self._optional
        self._required = self.whole if not self._optional or not required else self._of(required)

    def validate(self, inputs: Any) -> None:
        """Validate the inputs of one request.

        Raises:
            InvalidInput: names the input, the expectation and what came.
        """
        if self._text:
            inputs = self._without_text(inputs)
        signature = self.whole
        if self._optional:
            if isinstance(inputs, Mapping):
                signature = self._of(self._names - self._optional.difference(inputs))
            else:
                signature = self._required
        signature.check(inputs)

    def by_name(self, inputs: Any) -> Mapping[str, Any] | None:
        """Return a batch's arrays by name; ``None`` if it has none."""
        if isinstance(inputs, Mapping):
            return inputs
        if isinstance(inputs, np.ndarray) and self._required.only_input is not None:
            return {self._required.only_input: inputs}
        return None

    def _of(self, names: frozenset[str]) -> Signature:
        signature = self._sets.get(names)
        if signature is None:
            present = [spec for spec in self._inputs if spec.name in names]
            if not present:
                raise InvalidInput(f"inputs: expected at least one input of model {self._model.name!r}, got none")
            if len(self._sets) >= _MOST_SETS:
                self._sets.clear()
            signature = Signature(present, self._model.outputs, non_finite=self._non_finite)
            self._sets[names] = signature
        return signature

    def _without_text(self, inputs: Any) -> Any:
        """The same with arrays of objects where there is text: of its shape, and without its content."""
        if isinstance(inputs, Mapping):
            return {
                name: np.broadcast_to(_ANY_TEXT, value.shape) if name in self._text and is_text(value) else value
                for name, value in inputs.items()
            }
        return np.broadcast_to(_ANY_TEXT, inputs.shape) if is_text(inputs) else inputs
