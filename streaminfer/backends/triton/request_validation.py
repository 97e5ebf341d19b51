"""Validation of a request by the model's description: :class:`Signature`, and rules for text.

NumPy has many types of text, one for each width, but the protocol has one; only the shape of text is checked.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from streaminfer.backends.signature import TEXT, NonFinite, Signature
from streaminfer.backends.triton.dtypes import is_text
from streaminfer.backends.triton.model import ModelDescription
from streaminfer.errors import InvalidInput

__all__ = ["RequestValidator"]

_ANY_TEXT = np.array("", TEXT)


class RequestValidator:
    """Validates the inputs of requests.

    Args:
        model: the model's description.
        non_finite: ``"reject"`` rejects requests with a float that is NaN or infinite.

    Attributes:
        signature: the signature with every input.
    """

    def __init__(self, model: ModelDescription, non_finite: NonFinite) -> None:
        inputs = model.inputs
        if len(inputs) == 1:  # a request must have an input, so a single one is not optional
            inputs = (attrs.evolve(inputs[0], is_optional=False),)
        self.signature = Signature(inputs, model.outputs, non_finite=non_finite)
        self._model = model
        self._text = frozenset(spec.name for spec in inputs if spec.dtype == TEXT)

    def validate(self, inputs: Any) -> None:
        """Validate the inputs of one request.

        Raises:
            InvalidInput: names the input, the expectation and what came.
        """
        if self._text:
            inputs = self._without_text(inputs)
        self.signature.check(inputs)
        if isinstance(inputs, Mapping) and not inputs:
            raise InvalidInput(f"inputs: expected at least one input of model {self._model.name!r}, got none")

    def _without_text(self, inputs: Any) -> Any:
        """Return the inputs with each text replaced by an array of objects of its shape, without its content."""
        if isinstance(inputs, Mapping):
            return {
                name: np.broadcast_to(_ANY_TEXT, value.shape) if name in self._text and is_text(value) else value
                for name, value in inputs.items()
            }
        return np.broadcast_to(_ANY_TEXT, inputs.shape) if is_text(inputs) else inputs
