"""Inputs and outputs of a model, and the check of requests against them; independent of any runtime.

The check runs once per request, before the request is queued, so that a request that does not fit fails alone. Idea:
the properties of a valid array are computed once (dtype object, exact shape or the few fixed sizes), so that a valid
request costs a handful of comparisons. Only if one of them fails, a second, slow pass finds and words the reason. The
slow pass also accepts inputs that are valid but unusual: NumPy scalars, subclasses such as ``memmap``, mappings that
are not a ``dict``.

Accepted, because assembly copies them: read-only arrays, any strides. Rejected: any other dtype (another byte order is
another dtype), empty dimensions (runtimes divide by them), masked arrays (the mask would be lost), and, with
``non_finite="reject"``, floats that are NaN or infinite.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NoReturn

import attrs
import numpy as np
import numpy.typing as npt

from streaminfer._internal.masked import is_masked
from streaminfer._internal.text import is_all_text
from streaminfer._internal.validation import check_whole, expected
from streaminfer.backends._input_check_cy import InputCheck, RequestCheck, inputs_fit
from streaminfer.errors import BackendError, InvalidInput
from streaminfer.request import Request

__all__ = [
    "NonFinite",
    "Signature",
    "TensorSpec",
    "check_value",
    "free_axes",
    "guess_inputs",
    "inputs_of_example",
    "outputs_of_answer",
    "signature_of_example",
    "zeros",
]

TEXT = np.dtype(object)
"""The dtype of arrays of strings; NumPy has one such object."""

WHOLE = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)))
"""NumPy's names of the dtypes of truth values and whole numbers, which are also those of ONNX and Triton."""

NonFinite = Literal["allow", "reject"]
"""Treatment of floats that are NaN or infinite."""


@attrs.frozen
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: the name in the model.
        dtype: the dtype of the callers' arrays; object for strings; ``None`` for an output that is not a tensor (such
            as a list of mappings).
        shape: the shape in the model, batch axis included; a size that is a name or ``None`` is free.
        batch_axis: the axis on which requests are stacked; ``None`` for an input or output of the whole batch.
        is_optional: whether a request may leave out the input, because the model has a default for it.
        is_bfloat16: whether the model has bfloat16, for which NumPy has no type; callers have float32.
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...]
    batch_axis: int | None = 0
    is_optional: bool = False
    is_bfloat16: bool = False

    @property
    def row_shape(self) -> tuple[int | str | None, ...]:
        """Shape in one request, without the batch axis."""
        if self.batch_axis is None:
            return self.shape
        return self.shape[: self.batch_axis] + self.shape[self.batch_axis + 1 :]

    def __str__(self) -> str:
        shown = describe_shape("bfloat16" if self.is_bfloat16 else self.dtype, self.shape)
        return f"{self.name} {shown}{' (optional)' if self.is_optional else ''}"


def describe_shape(dtype: object, shape: Sequence[object]) -> str:
    """Return text such as ``float32[2, batch, 128]``; a free size without a name is ``?``."""
    kind = "sequence" if dtype is None else "str" if dtype is TEXT else dtype
    return f"{kind}[{', '.join('?' if size is None else str(size) for size in shape)}]"


def is_shape_of(declared: Sequence[object], shape: Sequence[int]) -> bool:
    """Return whether an array can have a shape that a model declares, in which some sizes are free."""
    return len(declared) == len(shape) and all(
        not isinstance(size, int) or size == actual for size, actual in zip(declared, shape, strict=True)
    )


def describe(value: object) -> str:
    """Return a short description of a received value."""
    if isinstance(value, (np.ndarray, np.generic)):
        prefix = "a masked array " if is_masked(value) else ""
        return prefix + describe_shape(str(value.dtype), value.shape)
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def _conversion_hint(value: object, dtype: str) -> str:
    if isinstance(value, Request):
        return "stack.call takes a Request, and the stack itself takes inputs"
    return "nothing was loaded" if value is None else f"make an array of it: np.asarray(x, dtype={dtype!r})"


def _check_of(spec: TensorSpec, *, finite: bool, text_fits: Callable[[Any], bool]) -> InputCheck:
    is_float = spec.dtype is not None and (spec.dtype.kind in "fc" or _is_bfloat16(spec.dtype))
    return InputCheck(
        spec.name,
        spec.dtype,
        spec.row_shape,
        text_fits=text_fits if spec.dtype == TEXT else None,
        finite=finite and is_float,
    )


def _explain(check: InputCheck, value: Any) -> None:
    """Raise an error that says what is wrong with an array, or return if it is valid: the slow pass."""
    if is_masked(value):
        _reject(check, value, "its mask would be lost: fill it with .filled()")
    if check.text_fits is not None:
        value = _as_text(check, check.text_fits, value)
    if not isinstance(value, (np.ndarray, np.generic)):
        _reject(check, value, _conversion_hint(value, str(check.dtype)))
    if value.dtype != check.dtype:
        _reject(check, value, f"convert it: x.astype({str(check.dtype)!r})")
    rank = len(check.shape)
    if value.ndim != rank:
        hint = "a request carries no batch axis" if value.ndim == rank + 1 else ""
        _reject(check, value, hint or f"{value.ndim} dimensions instead of {rank}, none of them a batch axis")
    for axis, size in enumerate(check.shape):
        if isinstance(size, int) and value.shape[axis] != size:
            _reject(check, value, f"axis {axis} has {value.shape[axis]} instead of {size}")
    if 0 in value.shape:
        _reject(check, value, f"axis {value.shape.index(0)} is empty")
    if check.finite and not np.isfinite(value).all():
        places = np.argwhere(~np.isfinite(np.atleast_1d(value)))
        raise InvalidInput(
            f"input {check.name!r}: expected finite values (non_finite='reject'), "
            f"got {len(places)} NaN or infinite, the first at {tuple(places[0].tolist())}"
        )


def _as_text(check: InputCheck, text_fits: Callable[[Any], bool], value: Any) -> Any:
    """Return strings as an array of objects, from any form that a batcher takes."""
    kind = np.asarray(value).dtype.kind if isinstance(value, (str, bytes, np.ndarray)) else ""
    text = np.asarray(value).astype(object) if kind in {"S", "U", "T"} else value
    if isinstance(text, np.ndarray) and text.dtype == TEXT and not text_fits(text):
        problem = "an element is no str"
        if is_all_text(text):
            problem = "an element has half a surrogate pair, which UTF-8 cannot encode"
        elif kind == "S":
            problem = "bytes are no text: decode them"
        _reject(check, value, problem)
    return text


def _reject(check: InputCheck, value: Any, reason: str) -> NoReturn:
    raise InvalidInput(
        f"input {check.name!r}: expected {describe_shape(check.dtype, check.shape)}, got {describe(value)}: {reason}"
    )


class Signature:
    """The inputs and outputs of a model.

    Args:
        inputs: what the model reads, in its order; those with ``batch_axis=None`` are shared by the whole batch.
        outputs: what the model returns, in its order.
        non_finite: ``"reject"`` rejects requests with a float that is NaN or infinite.
        text_fits: returns whether the model can take an array of objects as text.

    Attributes:
        output_names: the names of the outputs.
        has_bfloat16: whether an input or output of the model is bfloat16.
        batch_axes: the axis on which each input of a request is stacked, by name.
        only_input: the name of the input, if a request has just one.
        checks_kinds: whether a check depends only on names, types and shapes.
        rows_per_run: the size at which the model fixes its batch axis; ``None`` if the axis is free.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        non_finite: NonFinite = "allow",
        text_fits: Callable[[Any], bool] = is_all_text,
    ) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.output_names = [spec.name for spec in self.outputs]
        self.has_bfloat16 = any(spec.is_bfloat16 for spec in (*self.inputs, *self.outputs))
        per_request = [spec for spec in self.inputs if spec.batch_axis is not None]
        sizes = (spec.shape[spec.batch_axis or 0] for spec in per_request)
        self.rows_per_run = next((size for size in sizes if isinstance(size, int)), None)
        finite = non_finite == "reject"
        self.checks_kinds = not finite and all(spec.dtype != TEXT for spec in self.inputs)
        checks = [(spec, _check_of(spec, finite=finite, text_fits=text_fits)) for spec in per_request]
        self._checks = tuple([check for spec, check in checks if not spec.is_optional])
        self._optional = [check for spec, check in checks if spec.is_optional]
        self._only = self._checks[0] if len(self._checks) == 1 else None
        if self._optional and per_request[0].batch_axis:  # a batcher stacks unnamed inputs on the first axis
            self._only = None
        self.only_input = None if self._only is None else self._only.name
        self.batch_axes: Mapping[str, int] = MappingProxyType(
            {spec.name: spec.batch_axis for spec in per_request if spec.batch_axis is not None}
        )

    def check(self, inputs: Any) -> None:
        """Check the inputs of one request: one array if the model reads one, or a mapping of name to array.

        Raises:
            InvalidInput: the inputs do not fit; says which input, what was expected, and what came.
        """
        if not inputs_fit(self._checks, self._only, inputs):
            self._explain(inputs)

    def request_check(self) -> RequestCheck:
        """Return a compiled checker of requests, which works like :meth:`check`."""
        return RequestCheck(self._checks, self._only, self._explain)

    def _explain(self, inputs: Any) -> None:
        if not isinstance(inputs, Mapping):
            if self._only is None:
                raise InvalidInput(
                    f"inputs: expected a mapping with {self._names()}, got {describe(inputs)}: "
                    "the model reads several inputs"
                )
            inputs = {self._only.name: inputs}
        for name in inputs:
            if name not in self.batch_axes:
                is_shared = name in [spec.name for spec in self.inputs]
                reason = " too: the whole batch shares it" if is_shared else ": the model has no such input"
                raise InvalidInput(f"input {name!r}: expected only {self._names()}, got {name!r}{reason}")
        for check in self._checks:
            if check.name not in inputs:
                raise InvalidInput(
                    f"input {check.name!r}: expected {describe_shape(check.dtype, check.shape)}, "
                    f"got only {', '.join(map(repr, inputs)) or 'an empty mapping'}: it is missing"
                )
        for check in (*self._checks, *self._optional):
            if check.name in inputs:
                _explain(check, inputs[check.name])

    def batch_by_name(self, inputs: Any, backend: str) -> Mapping[str, Any]:
        """Return the arrays of a batch by name.

        Args:
            inputs: the inputs of the batch.
            backend: the backend that runs the batch, for the error.

        Raises:
            BackendError: the inputs are not stacked.
        """
        if isinstance(inputs, Mapping):
            return inputs
        if isinstance(inputs, np.ndarray) and self.only_input is not None:
            return {self.only_input: inputs}
        raise BackendError(
            f"{backend}: expected a batch of stacked arrays for {self._names()}, got {describe(inputs)}; "
            "a batcher in front of it needs stack=True"
        )

    def example_by_name(self, example: Any) -> Mapping[str, Any]:
        """Return the inputs of an example request by name; for ``None``, zeros and empty strings.

        Raises:
            ValueError: the example does not fit the model.
        """
        if example is None:
            return {spec.name: zeros(spec) for spec in filter(_is_required, self.inputs)}
        try:
            self.check(example)
        except ValueError as error:
            raise ValueError(f"example: {error}") from error
        return example if isinstance(example, Mapping) else {str(self.only_input): example}

    def _names(self) -> str:
        return ", ".join(map(repr, self.batch_axes))


def guess_inputs(specs: Sequence[TensorSpec], free_size: int = 1) -> dict[str, Any] | None:
    """Return zeros of the shapes that a model declares, as the inputs of one request.

    Args:
        specs: the inputs of the model.
        free_size: the size to use for axes that the model leaves open.

    Returns:
        An array by input name; ``None`` if an input is not an array of numbers.
    """
    required = list(filter(_is_required, specs))
    if not all(map(_has_numbers, required)):
        return None
    return {spec.name: zeros(spec, free_size) for spec in required}


def _has_numbers(spec: TensorSpec) -> bool:
    return spec.dtype is not None and (spec.dtype.kind in "biufc" or _is_bfloat16(spec.dtype))


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    return dtype.name == "bfloat16"  # from ml_dtypes; NumPy has no kind for it


def zeros(spec: TensorSpec, free_size: int = 1) -> npt.NDArray[Any]:
    """Return zeros or empty strings as one request's value of an input; free axes have size ``free_size``."""
    shape = [size if isinstance(size, int) else free_size for size in spec.row_shape]
    return np.full(shape, "", TEXT) if spec.dtype == TEXT else np.zeros(shape, spec.dtype)


def free_axes(specs: Sequence[TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Return, by input name, the axes in a request whose sizes the model leaves open; leaves out other inputs."""
    axes = {
        spec.name: tuple(axis for axis, size in enumerate(spec.row_shape) if not isinstance(size, int))
        for spec in filter(_is_required, specs)
    }
    return {name: free for name, free in axes.items() if free}


def _is_required(spec: TensorSpec) -> bool:
    """Return whether every request must have the input."""
    return spec.batch_axis is not None and not spec.is_optional


def signature_of_example(example: Any, free: Sequence[int] | Mapping[str, Sequence[int]] = ()) -> Signature | None:
    """Return the signature of a function's inputs, if the example is an array or a mapping of arrays.

    Args:
        example: one request's inputs, without a batch axis.
        free: axes whose size may differ from the example's, for every input or by name.

    Returns:
        A signature without outputs; ``None`` for other examples.

    Raises:
        TypeError, ValueError: an axis or input in ``free`` does not exist.
    """
    named = isinstance(example, Mapping)
    arrays = dict(example) if named else {"inputs": example}
    # values that fix the dtype of all requests; bytes do not, as their dtype has a length
    fixed = [type(it) is np.ndarray and not it.dtype.hasobject and it.dtype.kind != "S" for it in arrays.values()]
    if not fixed or not all(fixed):
        return None
    by_name = free if isinstance(free, Mapping) else dict.fromkeys(arrays, free)
    specs = []
    for name in by_name:
        if name not in arrays:
            raise ValueError(expected("free_axes", f"inputs of the example ({', '.join(map(repr, arrays))})", name))
    for name, value in arrays.items():
        shape: list[int | None] = list(value.shape)
        for free_axis in by_name.get(name, ()):
            expectation = f"axes of {value.ndim} dimensions, without the batch axis"
            axis = check_whole("free_axes", free_axis, expectation)
            if not -value.ndim <= axis < value.ndim:
                raise ValueError(expected("free_axes", expectation, axis))
            shape[axis] = None
        dtype = TEXT if value.dtype.kind == "U" else value.dtype
        specs.append(TensorSpec(name, dtype, (None, *shape), 0))
    return Signature(specs, ())


def inputs_of_example(example: Any) -> tuple[TensorSpec, ...]:
    """Return the specs of the inputs of an example that fixes no dtype: numbers, text, bytes, lists of them.

    All sizes are open. One input without a name is called ``inputs``.

    Returns:
        The specs; empty if an input is not a tensor.
    """
    named = example if isinstance(example, Mapping) else {"inputs": example}
    specs = []
    for name, value in named.items():
        tensor = _tensor_of(value)
        if tensor is None:
            return ()
        dtype, shape = tensor
        specs.append(TensorSpec(name, dtype, (None,) * (1 + len(shape))))
    return tuple(specs)


def outputs_of_answer(result: Any, rows: int, *, sizes_vary: bool) -> tuple[TensorSpec, ...]:
    """Return the specs of a function's outputs, from its result for one batch of the example.

    Outputs without names are called ``output``, or ``output_0``, ``output_1`` and so on. Outputs that are not tensors
    are left out.

    Args:
        result: the result of the function; in a list with one result per row, sizes may differ between rows.
        rows: the batch size.
        sizes_vary: whether the sizes depend on those of the inputs, and so stay open.
    """
    is_list = isinstance(result, list)
    value = result[0] if is_list and result else result
    if isinstance(value, Mapping):
        named = {str(name): one for name, one in value.items()}
    elif isinstance(value, tuple):
        named = {f"output_{number}": one for number, one in enumerate(value)}
    else:
        named = {"output": value}
    specs = []
    for name, one in named.items():
        tensor = _tensor_of(one)
        if tensor is None or not (is_list or tensor[1][:1] == (rows,)):
            continue
        dtype, shape = tensor
        sizes = shape if is_list else shape[1:]
        specs.append(TensorSpec(name, dtype, (None, *(None if is_list or sizes_vary else size for size in sizes))))
    return tuple(specs)


def _tensor_of(value: Any) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """Return dtype and shape of a value that servers can announce (numbers or text); ``None`` for other values."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # an array of another library, or rows of different shapes
        return None
    if array.dtype.kind in "SU" or (array.dtype == TEXT and array.size and is_all_text(array)):
        return TEXT, array.shape
    is_number = array.dtype.kind in "biuf" or _is_bfloat16(array.dtype)
    return (array.dtype, array.shape) if is_number else None


def check_value(spec: TensorSpec, value: object) -> npt.NDArray[Any]:
    """Check a constructor argument that the whole batch shares, and return a copy.

    Raises:
        ValueError: the value does not fit the model's input.
        TypeError: the value is not an array.
    """
    name = f"shared_inputs[{spec.name!r}]"
    expectation = describe_shape(spec.dtype, spec.shape)
    if not isinstance(value, (np.ndarray, np.generic)):
        raise TypeError(expected(name, f"an array {expectation}", value))
    if value.dtype != spec.dtype or not is_shape_of(spec.shape, value.shape):
        raise ValueError(f"{name}: expected {expectation}, got {describe(value)}")
    return np.array(value, order="C")
