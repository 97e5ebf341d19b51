"""Inputs that buckets accept, inputs that they reject, and the error messages."""

import numpy as np
import pytest

from streaminfer.batching.assembly.buckets import Buckets, as_buckets, row_bytes
from streaminfer.errors import InvalidInput

IDS = np.arange(5)


def test_defaults_and_conversions():
    buckets = Buckets([64, 128], mask="m", inputs=["a", "b"], pad_value={"a": 1})
    assert buckets.lengths == (64, 128)
    assert buckets.inputs == {"a", "b"}
    assert buckets.mask_dtype == np.int64
    assert (buckets.pad_of("a"), buckets.pad_of("b")) == (1, 0)
    assert Buckets((8,), pad_value=-1.5).pad_of("anything") == -1.5
    assert Buckets((8,), mask_dtype=bool).mask_dtype == np.bool_
    with pytest.raises(AttributeError):
        buckets.axis = 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lengths": ()}, ValueError, "lengths: expected ascending whole numbers ≥ 1"),
        ({"lengths": (64, 64)}, ValueError, "lengths: expected ascending"),
        ({"lengths": (64, 32)}, ValueError, "lengths: expected ascending"),
        ({"lengths": (0, 32)}, ValueError, "lengths: expected a whole number ≥ 1, got 0"),
        ({"lengths": (1.5,)}, TypeError, "lengths: expected a whole number"),
        ({"lengths": 64}, TypeError, "lengths: expected ascending whole numbers ≥ 1, got 64"),
        ({"lengths": "64"}, TypeError, "lengths: expected ascending"),
        ({"axis": 0.0}, TypeError, "axis: expected a whole number"),
        ({"axis": True}, TypeError, "axis: expected a whole number"),
        ({"pad_value": "x"}, TypeError, "pad_value: expected a number"),
        ({"pad_value": None}, TypeError, "pad_value: expected a number"),
        ({"pad_value": {"a": [1]}}, TypeError, "pad_value: expected a number or a mapping"),
        ({"mask": 3}, TypeError, "mask: expected the name of an input"),
        ({"mask": "a", "inputs": ("a",)}, ValueError, "mask: expected a name that is not among inputs"),
        ({"axis": np.arange(2)}, TypeError, "axis: expected a whole number"),
        ({"mask_dtype": "no"}, TypeError, "mask_dtype: expected a dtype of numbers or bool, got 'no'"),
        ({"mask_dtype": "U3"}, ValueError, "mask_dtype: expected a dtype of numbers or bool"),
        ({"inputs": "ids"}, TypeError, "inputs: expected names of inputs"),
        ({"inputs": ()}, ValueError, "inputs: expected names of inputs"),
        ({"inputs": (1,)}, ValueError, "inputs: expected names of inputs"),
        ({"max_elements": 127}, ValueError, "max_elements: expected a whole number ≥ 128, got 127"),
        ({"max_elements": 1e6}, TypeError, "max_elements: expected a whole number"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Buckets(**({"lengths": (64, 128)} | arguments))


def test_lengths_alone_are_shorthand():
    assert as_buckets((64, 128)) == Buckets((64, 128))
    assert as_buckets([64]) == Buckets((64,))
    assert as_buckets(None) is None
    buckets = Buckets((64,), axis=1)
    assert as_buckets(buckets) is buckets
    for value in (64, "64", b"64", {64}):
        with pytest.raises(TypeError, match="buckets: expected Buckets, ascending lengths ≥ 1, or None"):
            as_buckets(value)
    for value in ([], [2, 1], [0]):
        with pytest.raises(ValueError, match=r"^buckets: expected"):
            as_buckets(value)


@pytest.mark.parametrize(
    ("buckets", "inputs", "message"),
    [
        (Buckets((4,)), IDS, r"expected at most 4 along axis 0, the longest of the buckets \(4,\), got 5"),
        (Buckets((4, 8)), 3, "expected an array with axis 0, along which lengths differ, got int"),
        (Buckets((8,)), np.array(3), "expected an array with axis 0"),
        (Buckets((8,), axis=1), IDS, "expected an array with axis 1"),
        (Buckets((8,), axis=-2), IDS, "expected an array with axis -2"),
        (Buckets((8,)), {"a": 1.0}, "expected an array with axis 0"),
        (Buckets((8,)), {"a": IDS, "b": IDS[:3]}, "expected one length along axis 0, got a: 5, b: 3; inputs= names"),
        (Buckets((8,), inputs=("a", "b")), {"a": IDS, "b": 3.0}, "input 'b': expected an array with axis 0, got float"),
        (Buckets((8,), inputs=("x",)), {"a": IDS}, "expected an array with axis 0"),
        (Buckets((8,), mask="m"), IDS, "expected a mapping of input name to array.*got ndarray of shape"),
        (Buckets((8,), mask="m"), {"a": IDS, "m": IDS}, "expected no 'm', which the buckets add"),
        (Buckets((8,)), np.array(["a", "b"]), "^inputs: expected numbers to pad, got <U1"),
        (
            Buckets((8,), pad_value=-1),
            IDS.astype(np.uint8),
            "^inputs: expected a dtype that holds the pad value -1, got uint8",
        ),
        (Buckets((8,), pad_value=0.5), IDS, "expected a dtype that holds the pad value 0.5, got int64"),
        (Buckets((8,), pad_value=float("nan")), IDS, "expected a dtype that holds the pad value nan, got int64"),
        (Buckets((8,), pad_value=1j), IDS.astype(float), "expected a dtype that holds the pad value 1j, got float64"),
        (Buckets((8,), pad_value=1e6), IDS.astype(np.float16), "holds the pad value 1000000.0, got float16"),
        (Buckets((8,), pad_value={"a": 300}), {"a": IDS.astype(np.uint8)}, "input 'a': .* holds the pad value 300"),
    ],
)
def test_inputs_that_cannot_be_padded_are_rejected(buckets, inputs, message):
    with pytest.raises(InvalidInput, match=message):
        buckets.check(inputs)


@pytest.mark.parametrize(
    ("buckets", "inputs"),
    [
        (Buckets((8,)), IDS),
        (Buckets((5,)), IDS),
        (Buckets((8,)), IDS[:0]),
        (Buckets((8,), axis=1), np.zeros((80, 3))),
        (Buckets((8,), axis=-1), {"mel": np.zeros((80, 3)), "pitch": np.zeros(3), "speaker": 4}),
        (Buckets((8,), inputs=("ids",)), {"ids": IDS, "speaker": np.zeros(256)}),
        (Buckets((8,), mask="m", inputs=("ids", "types")), {"ids": IDS}),
        (Buckets((8,), pad_value=float("-inf")), IDS.astype(np.float16)),
        (Buckets((8,), pad_value=float("nan")), IDS.astype(np.float32)),
        (Buckets((8,), pad_value=0.1), IDS.astype(np.float32)),
        (Buckets((8,), pad_value=1j), IDS.astype(complex)),
        (Buckets((8,), pad_value=1), IDS.astype(bool)),
    ],
)
def test_inputs_that_can_be_padded_are_accepted(buckets, inputs):
    buckets.check(inputs)


def test_bytes_of_a_row_count_its_padding_and_mask():
    buckets = Buckets((4, 8), mask="m", inputs=("ids",))
    assert row_bytes(IDS) == 40
    assert row_bytes(np.zeros((3, 5), np.float32), (Buckets((8,), axis=1), 8)) == 3 * 8 * 4
    assert row_bytes({"ids": IDS, "other": IDS, "n": 1.0}, (buckets, 8)) == 64 + 40 + 8 + 64
    assert row_bytes({"a": {"b": IDS}, "c": "abc", "d": b"ab"}) == 40 + 12 + 2
    assert row_bytes(IDS[:0], (Buckets((8,)), 8)) == 64
