"""`prepare`, compiled and uncompiled: brings the inputs of a request into a form that can be stacked."""

from collections import UserDict
from types import MappingProxyType

import numpy as np
import pytest

from streaminfer.batching.assembly import _prepare_cy as compiled
from streaminfer.errors import InvalidInput

pytestmark = pytest.mark.uncompiled

ARRAY = np.zeros((2, 3), np.float32)
KEPT = [1.5, True, 2 + 1j, "text", b"bytes", 7, ARRAY, np.zeros(2, "M8[s]"), np.zeros(2, [("a", "i4")])]
MIXED = [["a", 1], [b"a", 1]]
REFUSED = [object(), [[1], [1, 2]], *MIXED, np.array([None]), None, 2**63, -(2**63) - 1, {"a": ARRAY, "b": object()}]


@pytest.fixture(scope="module", params=["built", "plain"])
def prepare(request, plain):
    return (compiled if request.param == "built" else plain("batching.assembly._prepare_cy")).prepare


@pytest.mark.parametrize("inputs", KEPT, ids=lambda it: type(it).__name__)
def test_stackable_inputs_are_unchanged(prepare, inputs):
    assert prepare(inputs) is inputs


@pytest.mark.parametrize("kind", [dict, MappingProxyType])
def test_a_mapping_is_copied_and_its_values_prepared(prepare, kind):
    given = {"array": ARRAY, "list": [1, 2], "inner": {"number": 1.5}, "text": np.array(["a", "b"])}
    prepared = prepare(kind(given))
    given.clear()
    assert list(prepared) == ["array", "list", "inner", "text"]
    assert prepared["array"] is ARRAY
    assert prepared["list"].tolist() == [1, 2]
    assert prepared["inner"] == {"number": 1.5}
    assert prepared["text"].dtype == object


@pytest.mark.parametrize("inputs", [["a\0", "bc"], (b"a\0", b"bc")], ids=["text", "bytes"])
def test_texts_of_a_list_keep_zeros_at_their_end(prepare, inputs):
    """NumPy's own types of text and bytes would drop them."""
    prepared = prepare(inputs)
    assert (prepared.dtype, prepared.tolist()) == (object, list(inputs))


@pytest.mark.parametrize("inputs", REFUSED, ids=lambda it: type(it).__name__)
def test_unstackable_inputs_are_rejected(prepare, inputs):
    with pytest.raises(InvalidInput, match=r"inputs(\['b'\])?: expected"):
        prepare(inputs)


@pytest.mark.parametrize(
    ("inputs", "actual"), [(None, "None"), (np.array([None]), "an array of object"), ([{}], "list")]
)
def test_an_unstackable_input_is_named(prepare, inputs, actual):
    with pytest.raises(InvalidInput, match=f"got {actual} that numpy cannot stack"):
        prepare(inputs)


class Unreadable(Exception):
    """An error whose message cannot be read."""

    def __str__(self):
        raise RuntimeError


class FailingArray:
    def __array__(self, *_args, **_options):
        raise Unreadable


class FailingMapping(UserDict):
    def __getitem__(self, name):
        raise Unreadable


@pytest.mark.parametrize("inputs", [FailingArray(), FailingMapping(a=1)], ids=["array", "mapping"])
def test_inputs_that_raise_when_read_are_rejected(prepare, inputs):
    with pytest.raises(InvalidInput, match=r"inputs: expected .*Unreadable"):
        prepare(inputs)


def test_a_masked_array_is_rejected(prepare):
    """A masked array is rejected by an error that names it, because the model would read the values under the mask."""
    masked = np.ma.MaskedArray([1.0, 2.0], [False, True])

    with pytest.raises(
        InvalidInput, match=r"^inputs: expected an array without a mask, got a masked array float64\[2\]"
    ):
        prepare(masked)
    with pytest.raises(InvalidInput, match=r"^inputs\['a'\]\['b'\]: expected an array without a mask"):
        prepare({"a": {"b": masked}})
    assert prepare(masked.filled(0.0)).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_self_referencing_mapping_is_rejected(prepare, kind):
    """A mapping that contains itself is rejected, because compiled code would follow it until the process crashes."""
    endless = kind()
    endless["inner"] = endless

    with pytest.raises(InvalidInput, match="inputs: nested deeper than 64 levels"):
        prepare(endless)
