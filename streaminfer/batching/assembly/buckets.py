"""`Buckets`: a few lengths to which ragged rows are padded, so that rows of about one length share a batch.

*Idea.* Text and audio have any length, and a batch is a rectangle. Padding all rows to the longest one gives the model
a different shape each time, for which it may have to plan or compile, and one long row makes all others cost more. So a
row is padded to the smallest of a few fixed lengths that fits, its *bucket*, and only rows of one bucket share a batch.
If each length is twice the previous one, a row is padded at most to twice its length. A mask tells the model what is
padding. With a mask, the planner may put shorter rows into the batch of a longer bucket, if one batch takes no longer
than two would.

*Invariants.* The ragged arrays of one request have one length. Two requests are stacked only if they differ in nothing
but that length, and have the same bucket or a mask. Without a mask, a response therefore depends on the row's own
bucket and on no other row. Responses are delivered as the model returned them: a caller who wants one label per token
cuts off those of the padding.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from streaminfer._internal.text import has_text, text_bytes
from streaminfer._internal.validation import check_ascending, check_count, check_instance, check_whole, expected
from streaminfer.errors import InvalidInput

__all__ = ["Buckets", "as_buckets"]

_NUMBERS = "biufc"


def _lengths(value: Any) -> tuple[int, ...]:
    return check_ascending("lengths", value, "ascending whole numbers ≥ 1")


def _pad_value(value: Any) -> Any:
    numbers = value.values() if isinstance(value, Mapping) else (value,)
    for number in numbers:
        check_instance("pad_value", number, np.isscalar, "a number or a mapping of input name to number")
        check_instance("pad_value", number, lambda it: np.asarray(it).dtype.kind in _NUMBERS, "a number")
    return dict(value) if isinstance(value, Mapping) else value


def _axis(value: Any) -> int:
    return check_whole("axis", value, "a whole number")


def _mask_dtype(value: Any) -> np.dtype[Any]:
    expectation = "a dtype of numbers or bool"
    try:
        dtype: np.dtype[Any] = np.dtype(value)
    except (TypeError, ValueError):
        raise TypeError(expected("mask_dtype", expectation, value)) from None
    if dtype.kind not in _NUMBERS:
        raise ValueError(expected("mask_dtype", expectation, value))
    return dtype


def _inputs(value: Any) -> frozenset[str] | None:
    if value is None:
        return None
    expectation = "names of inputs, or None"
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        raise TypeError(expected("inputs", expectation, value))
    names = frozenset(value)
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(expected("inputs", expectation, value))
    return names


def _optional_name(_: Any, attribute: Any, value: Any) -> None:
    check_instance(attribute.name, value, str | None, "the name of an input, or None")


@attrs.frozen
class Buckets:
    """Lengths to which ragged rows are padded; a batch has rows of one bucket.

    Immutable; safe to share between threads and batchers. A row longer than the last length is rejected with
    ``InvalidInput``.

    Args:
        lengths: ascending, each ≥ 1.
        axis: the axis of a request's array (which has no batch axis) along which lengths differ: 0 for token ids and
            samples, 1 for spectrograms with time last; negative counts from the end.
        pad_value: the padding after a shorter row, a number that fits the input's dtype; or a mapping of input name to
            number, 0 for inputs that it does not name.
        mask: name of an input that the batcher adds, of shape (batch, length): 1 where a row is real, 0 where it is
            padding. Requests must then be mappings, because the model reads more than one input, and must not have this
            input themselves. ``None``: none is added, and a mask in requests is padded like any input.
        mask_dtype: dtype of that input; exported text models read int64.
        inputs: names of the ragged inputs, for requests that are mappings; the others are stacked unchanged. ``None``:
            every array that has the axis.
        max_elements: the most padded elements, rows × bucket length, of a batch; ``None``: no such limit.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Example:
        >>> Buckets((64, 128, 256), pad_value={"input_ids": 1}, mask="attention_mask", max_elements=8192).lengths
        (64, 128, 256)
    """

    lengths: tuple[int, ...] = attrs.field(converter=_lengths)
    axis: int = attrs.field(default=0, converter=_axis, kw_only=True)
    pad_value: Any = attrs.field(default=0, converter=_pad_value, kw_only=True)
    mask: str | None = attrs.field(default=None, validator=_optional_name, kw_only=True)
    mask_dtype: np.dtype[Any] = attrs.field(default=np.int64, converter=_mask_dtype, kw_only=True)
    inputs: frozenset[str] | None = attrs.field(default=None, converter=_inputs, kw_only=True)
    max_elements: int | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.max_elements is not None:
            check_count("max_elements", self.max_elements, at_least=self.lengths[-1])
        if self.mask is not None and self.inputs is not None and self.mask in self.inputs:
            raise ValueError(expected("mask", "a name that is not among inputs", self.mask))

    def is_ragged(self, name: str | None, value: Any) -> bool:
        """Return whether an input is padded.

        Args:
            name: name of the input; ``None`` for a request that is one array.
            value: the input.
        """
        if type(value) is not np.ndarray or not -value.ndim <= self.axis < value.ndim:
            return False
        return name is None or self.inputs is None or name in self.inputs

    def lengths_of(self, rows: list[Any]) -> tuple[list[int], int]:
        """Return the lengths of rows of one batch along the ragged axis, and the length to which they are padded."""
        first = rows[0]
        if type(first) is dict:
            name = next(name for name, value in first.items() if self.is_ragged(name, value))
            rows = [row[name] for row in rows]
        lengths = [row.shape[self.axis] for row in rows]
        return lengths, self.lengths[bisect_left(self.lengths, max(lengths))]

    def pad_of(self, name: str | None) -> Any:
        """Return the number with which an input is padded."""
        if isinstance(self.pad_value, dict):
            return self.pad_value.get(name, 0)
        return self.pad_value

    def check(self, inputs: Any) -> None:
        """Check the inputs of one request.

        Args:
            inputs: an array, or a mapping of arrays.

        Raises:
            InvalidInput: no array has the axis, lengths differ or are too long, the pad value does not fit, or the
                mask cannot be added.
        """
        if type(inputs) is dict:
            if self.mask in inputs:
                raise InvalidInput(f"inputs: expected no {self.mask!r}, which the buckets add as their mask")
            ragged = {name: value for name, value in inputs.items() if self.is_ragged(name, value)}
            if self.inputs is not None:
                for name in self.inputs.intersection(inputs).difference(ragged):
                    raise InvalidInput(
                        f"input {name!r}: expected an array with axis {self.axis}, {_actual(inputs[name])}"
                    )
        elif self.mask is not None:
            expectation = "a mapping of input name to array, since the buckets add a mask beside it"
            raise InvalidInput(f"inputs: expected {expectation}, {_actual(inputs)}")
        else:
            ragged = {None: inputs} if self.is_ragged(None, inputs) else {}
        if not ragged:
            expectation = f"an array with axis {self.axis}, along which lengths differ"
            raise InvalidInput(f"inputs: expected {expectation}, {_actual(inputs)}")
        lengths = {value.shape[self.axis] for value in ragged.values()}
        if len(lengths) > 1:
            sizes = ", ".join(f"{name}: {value.shape[self.axis]}" for name, value in ragged.items())
            raise InvalidInput(
                f"inputs: expected one length along axis {self.axis}, got {sizes}; inputs= names those that are ragged"
            )
        (length,) = lengths
        if length > self.lengths[-1]:
            raise InvalidInput(
                f"inputs: expected at most {self.lengths[-1]} along axis {self.axis}, the longest of the buckets "
                f"{self.lengths}, got {length}"
            )
        for name, value in ragged.items():
            _check_pad(name, self.pad_of(name), value.dtype)


def as_buckets(value: Any) -> Buckets | None:
    """Return a batcher's ``buckets=`` as `Buckets`; it may be `Buckets`, their lengths alone, or ``None``.

    Raises:
        TypeError, ValueError: something else.
    """
    if value is None or isinstance(value, Buckets):
        return value
    return Buckets(check_ascending("buckets", value, "Buckets, ascending lengths ≥ 1, or None"))


def row_bytes(inputs: Any, length_of: "tuple[Buckets, int] | None" = None) -> int:
    """Return the bytes of one row in its batch.

    Args:
        inputs: the prepared inputs of one request.
        length_of: the buckets and the length to which the row is padded; ``None``: it is not padded.
    """
    if type(inputs) is not dict:
        return _bytes(None, inputs, length_of)
    total = sum(_bytes(name, value, length_of) for name, value in inputs.items())
    if length_of is not None and length_of[0].mask is not None:
        total += length_of[0].mask_dtype.itemsize * length_of[1]
    return total


def _bytes(name: str | None, value: Any, length_of: "tuple[Buckets, int] | None") -> int:
    if type(value) is dict:
        return sum(_bytes(inner, each, None) for inner, each in value.items())
    if has_text(value):
        return text_bytes(value)
    if type(value) is not np.ndarray:
        return np.asarray(value).nbytes
    if length_of is None or not length_of[0].is_ragged(name, value):
        return int(value.nbytes)
    shape = list(value.shape)
    shape[length_of[0].axis] = length_of[1]
    return int(math.prod(shape) * value.itemsize)


def _check_pad(name: str | None, pad: Any, dtype: np.dtype[Any]) -> None:
    if dtype.kind not in _NUMBERS:
        raise InvalidInput(f"{_named(name)}: expected numbers to pad, got {dtype}")
    if pad == 0:
        return
    fits = dtype.kind == "c" or not np.iscomplexobj(pad)
    if fits:
        with np.errstate(all="ignore"):
            padded: NDArray[Any] = np.asarray(pad).astype(dtype)
        exact = dtype.kind in "fc" or padded == pad
        fits = bool(exact) and bool(np.isfinite(pad)) == bool(np.isfinite(padded))
    if not fits:
        raise InvalidInput(f"{_named(name)}: expected a dtype that holds the pad value {pad!r}, got {dtype}")


def _named(name: str | None) -> str:
    return "inputs" if name is None else f"input {name!r}"


def _actual(value: Any) -> str:
    shape = f" of shape {value.shape}" if isinstance(value, np.ndarray) else ""
    return f"got {type(value).__name__}{shape}"
