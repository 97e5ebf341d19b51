"""`StateSignature`: separates the states of a model from the inputs and outputs of requests."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.validation import brief, check_count, check_instance, expected
from streaminfer.backends.signature import TensorSpec
from streaminfer.errors import InvalidInput
from streaminfer.protocols import Capabilities, ModelTensor, ModelTensors
from streaminfer.streams.state.layout import Growing, Initial, StateTensor

__all__ = ["Context", "StateSignature"]

Array = NDArray[Any]


class Context(NamedTuple):
    """The last samples of an input, which the next step reads again before its own samples.

    Attributes:
        name: name of the input.
        length: number of samples along the axis.
        axis: axis of the input, counting the batch axis.
        axis_of_row: the axis without the batch axis.
    """

    name: str
    length: int
    axis: int
    axis_of_row: int


class StateSignature:
    """States, contexts and the other inputs of a model.

    Args:
        capabilities: capabilities of the backend.
        state: as for `StatefulBackend`.
        context: as for `StatefulBackend`.
        initial: as for `StatefulBackend`.
        growing: as for `StatefulBackend`.

    Attributes:
        state: name of the input → name of the output.
        tensors: all states, with the contexts last.
        written: states that the model writes.
        contexts: contexts of the inputs.
        state_outputs: names of the state outputs.
        lengths: inputs for the lengths of growing states: position of the state among these, name and type of an input.
        batch_axes: batch axes of the inputs of requests.
        only_input: name of the only input of requests; ``None``: there are several, or they are not known.

    Raises:
        TypeError, ValueError: an argument does not fit.
    """

    def __init__(
        self,
        capabilities: Capabilities,
        state: Mapping[str, str],
        context: Mapping[str, int | tuple[int, int]] | None,
        initial: Mapping[str, Initial] | None,
        growing: Mapping[str, Growing] | None,
    ) -> None:
        names = "a mapping of input name to output name"
        check_instance("state", state, Mapping, names)
        check_instance("state", state, lambda it: all(isinstance(name, str) for name in (*it, *it.values())), names)
        if not state or len(set(state.values())) < len(state):
            raise ValueError(expected("state", f"{names}, each once", state))
        self.state = dict(state)
        if capabilities.model_tensors is not None and (model := capabilities.model_tensors()) is not None:
            _check_known("state", "inputs of the model", [spec.name for spec in model.inputs], state)
            _check_known("state", "outputs of the model", [spec.name for spec in model.outputs], state.values())
        self._axes = capabilities.batch_axes
        example = capabilities.example()
        self._free = {} if example is None else example.free_axes
        inputs = None if example is None else example.inputs
        self._example: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {}
        context = _mapping("context", context)
        self._initial: Mapping[str, Any] = _mapping("initial", initial)
        _check_known("initial", "states", [*state, *context], self._initial)
        self._growing: Mapping[str, Growing] = _mapping("growing", growing)
        _check_known("growing", "states", [*state], self._growing)
        for name, growth in self._growing.items():
            check_instance(f"growing[{name!r}]", growth, Growing, "a Growing")
        self.written = [self._tensor(name, output) for name, output in state.items()]
        self.contexts: list[Context] = []
        ends = [self._add_context(name, extent) for name, extent in context.items()]
        self.tensors = [*self.written, *ends]
        self.state_outputs = frozenset(state.values())
        lengths = [self._growing[tensor.name].lengths for tensor in self.written if tensor.grows is not None]
        self.lengths = [
            (position, name, np.asarray(self._example.get(name, np.int64())).dtype)
            for position, name in enumerate(lengths)
            if name is not None
        ]
        self._state_inputs = frozenset((*state, *filter(None, lengths)))
        request_inputs = [name for name in {**self._example, **self._axes} if name not in self._state_inputs]
        self.only_input = request_inputs[0] if len(request_inputs) == 1 else None
        self.batch_axes = {name: axis for name, axis in self._axes.items() if name not in self._state_inputs}
        self._templates = {
            **{tensor.name: np.zeros(tensor.with_length(tensor.shape, 1), tensor.dtype) for tensor in self.written},
            **{name: np.zeros((), dtype) for _, name, dtype in self.lengths},
        }
        self._ends = {tensor.name: np.zeros(tensor.shape, tensor.dtype) for tensor in ends}

    def is_state(self, name: str) -> bool:
        """Return whether an input comes from the stream and not from the request."""
        return name in self._state_inputs

    def with_states(self, inputs: Any) -> Mapping[str, Any]:
        """Return the inputs of the model for one request, with zeros for states and contexts.

        Raises:
            InvalidInput: the inputs have no names, a state is among them, or a chunk does not fit its context.
        """
        self.check_names(inputs)
        if not isinstance(inputs, Mapping):
            inputs = {self.only_input: inputs}
        for name in inputs:
            if name in self._state_inputs:
                raise InvalidInput(f"input {name!r}: expected no state, which the stream has; leave it out")
        model_inputs = {**inputs, **self._templates}
        for context in self.contexts:
            if context.name not in inputs:
                names = ", ".join(map(repr, inputs)) or "an empty mapping"
                raise InvalidInput(f"input {context.name!r}: expected an array, got only {names}: it is missing")
            model_inputs[context.name] = self._joined(context, inputs[context.name])
        return model_inputs

    def explain(self, error: InvalidInput) -> InvalidInput:
        """Return the error of a check of the model, which counts the elements of a context with those of a request."""
        for context in self.contexts:
            if str(error).startswith(f"input {context.name!r}:"):
                return InvalidInput(f"{error} (counted with the {context.length} before, which are the stream's)")
        return error

    def check_names(self, inputs: Any) -> None:
        """Check that the inputs of a request have names, unless requests are known to have only one input.

        Raises:
            InvalidInput: the inputs have no names.
        """
        if self.only_input is None and not isinstance(inputs, Mapping):
            raise InvalidInput(expected("inputs", "a mapping of input name to array", inputs))

    def without_states(self, inputs: Mapping[str, Any]) -> Any:
        """Return the inputs of a request, from an example with all inputs of the model."""
        request_inputs = {name: value for name, value in inputs.items() if name not in self._state_inputs}
        for context in self.contexts:
            axis = context.axis_of_row
            value = np.asarray(request_inputs[context.name])
            if axis not in self._free.get(context.name, ()):
                value = value[(*(slice(None),) * axis, slice(context.length, None))]
            request_inputs[context.name] = value
        return request_inputs if self.only_input is None else request_inputs[self.only_input]

    def tensors_of_requests(self, model: ModelTensors) -> ModelTensors:
        """Return the tensors of requests and responses, from those of the model."""
        inputs = [self._without_context(spec) for spec in model.inputs if spec.name not in self._state_inputs]
        outputs = [spec for spec in model.outputs if spec.name not in self.state_outputs]
        return model._replace(inputs=inputs, outputs=outputs, takes_one_array=self.only_input is not None)

    def _without_context(self, spec: ModelTensor) -> ModelTensor:
        shape = list(spec.row_shape)
        for context in self.contexts:
            if context.name == spec.name and isinstance(size := shape[context.axis_of_row], int):
                shape[context.axis_of_row] = size - context.length
        return TensorSpec(spec.name, spec.dtype, (None, *shape), 0, spec.is_optional, spec.is_bfloat16)

    def _joined(self, context: Context, chunk: Any) -> Array:
        name, length, _, axis = context
        before = self._ends[name]
        size = "?" if axis in self._free.get(name, ()) else np.shape(self._example[name])[axis] - length
        if not isinstance(chunk, np.ndarray) or chunk.ndim != before.ndim or size not in ("?", chunk.shape[axis]):
            kind = f"{before.dtype}{[*before.shape[:axis], size, *before.shape[axis + 1 :]]}"
            raise InvalidInput(
                f"input {name!r}: expected {kind} (the {length} before are the stream's), got {brief(chunk)}"
            )
        try:
            return np.concatenate((before.astype(chunk.dtype, copy=False), chunk), axis=axis)
        except ValueError as error:
            raise InvalidInput(f"input {name!r}: {error}") from error

    def _tensor(self, name: str, output: str) -> StateTensor:
        growth, free, example = self._growing.get(name), self._free.get(name, ()), self._example.get(name)
        if example is None or (free and (growth is None or len(free) > 1)):
            example = self._initial.get(name)
        if example is None or callable(example):
            raise ValueError(
                f"initial: expected an array for state {name!r}, got {'none' if example is None else 'a function'}: "
                "the backend does not know shape and type of this state"
            )
        template = np.asarray(example)
        if growth is None:
            return self._make(name, output, template.shape, template.dtype)
        axis = _checked_axis(f"growing[{name!r}]", growth.axis, template.ndim)
        shape = (*template.shape[:axis], growth.max_length, *template.shape[axis + 1 :])
        return self._make(name, output, shape, template.dtype, axis)

    def _add_context(self, name: str, extent: Any) -> StateTensor:
        argument = f"context[{name!r}]"
        if name in self.state:
            raise ValueError(expected("context", "inputs that are no state", name))
        example = self._example.get(name)
        if example is None:
            raise ValueError(f"{argument}: expected an input whose shape the backend knows, got none of it")
        template = np.asarray(example)
        length, axis = extent if isinstance(extent, tuple) and len(extent) == 2 else (extent, -1)
        check_count(argument, length)
        axis = _checked_axis(argument, axis, template.ndim)
        free = self._free.get(name, ())
        if any(other != axis for other in free):
            raise ValueError(expected(argument, "an input whose other sizes the model states", free))
        if axis not in free and template.shape[axis] <= length:
            raise ValueError(expected(argument, f"less than the {template.shape[axis]} that the model reads", length))
        self.contexts.append(Context(name, length, axis + (axis >= self._axes.get(name, 0)), axis))
        shape = (*template.shape[:axis], length, *template.shape[axis + 1 :])
        return self._make(name, "", shape, template.dtype)

    def _make(
        self, name: str, output: str, shape: tuple[int, ...], dtype: np.dtype[Any], grows: int | None = None
    ) -> StateTensor:
        argument = f"initial[{name!r}]"
        if dtype.hasobject or not all(shape):
            raise ValueError(expected(argument, "numbers, and no empty axis", f"{dtype}{list(shape)}"))
        zeros = np.zeros(shape if grows is None else (*shape[:grows], 0, *shape[grows + 1 :]), dtype)
        tensor = StateTensor(name, output, shape, dtype, self._axes.get(name, 0), zeros, grows)
        initial = self._initial.get(name)
        if initial is None:
            return tensor
        if not callable(initial):
            check_instance(argument, initial, np.ndarray, "an array, or a function")
            if initial.dtype != dtype or not tensor.fits_row(initial.shape):
                raise ValueError(f"{argument}: expected {dtype}{list(shape)}, got {initial.dtype}{list(initial.shape)}")
            initial = initial.copy()
        return attrs.evolve(tensor, initial=initial)


def _mapping(argument: str, value: Any) -> Mapping[str, Any]:
    check_instance(argument, value, Mapping | None, "a mapping by name, or None")
    return dict(value or {})


def _check_known(argument: str, kind: str, known: Sequence[str], names: Iterable[str]) -> None:
    for name in names:
        if known and name not in known:
            raise ValueError(expected(argument, f"{kind} ({', '.join(map(repr, known))})", name))


def _checked_axis(argument: str, axis: Any, dimensions: int) -> int:
    if not isinstance(axis, int) or not -dimensions <= axis < dimensions:
        raise ValueError(expected(argument, f"an axis of {dimensions} dimensions", axis))
    return axis % dimensions
