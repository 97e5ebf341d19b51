"""What a request brought, in a form that can be stacked; compiled against plain."""

from types import MappingProxyType

import numpy as np
import pytest

from streaminfer.batching.assembly import _prepare_cy as compiled
from streaminfer.errors import InvalidInput

pytestmark = pytest.mark.uncompiled

ARRAY = np.zeros((2, 3), np.float32)
KEPT = [1.5, True, 2 + 1j, "text", b"bytes", 7, ARRAY, np.zeros(2, "M8[s]"), np.zeros(2, [("a", "i4")])]
REFUSED = [object(), [[1], [1, 2]], np.array([None]), None, 2**63, -(2**63) - 1, {"a": ARRAY, "b": object()}]


@pytest.fixture(scope="module", params=["built", "plain"])
def prepare(request, plain):
    return (compiled if request.param == "built" else plain("batching.assembly._prepare_cy")).prepare


@pytest.mark.parametrize("inputs", KEPT, ids=lambda it: type(it).__name__)
def test_what_can_be_stacked_is_kept(prepare, inputs):
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


@pytest.mark.parametrize("inputs", REFUSED, ids=lambda it: type(it).__name__)
def test_what_cannot_be_stacked_is_refused(prepare, inputs):
    with pytest.raises(InvalidInput, match="inputs: expected"):
        prepare(inputs)
