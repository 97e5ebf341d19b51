"""One mapping per row from columns, compiled and uncompiled."""

import numpy as np
import pytest

from streaminfer._internal import _named_rows_cy as compiled

pytestmark = pytest.mark.uncompiled


@pytest.fixture(scope="module", params=["built", "plain"])
def named_rows(request, plain):
    return (compiled if request.param == "built" else plain("_internal._named_rows_cy")).named_rows


def test_each_row_has_its_value_of_each_column(named_rows):
    rows = named_rows(["a", "b"], [np.array([[1, 2], [3, 4]]), ["x", "y"]], 2)
    assert [list(row) for row in rows] == [["a", "b"], ["a", "b"]]
    assert [row["a"].tolist() for row in rows] == [[1, 2], [3, 4]]
    assert [row["b"] for row in rows] == ["x", "y"]


def test_rows_are_separate_mappings(named_rows):
    """Rows are separate mappings even without columns: each goes to another caller, who may write to it."""
    first, second = named_rows([], [], 2)
    first["a"] = 1
    assert second == {}


def test_a_column_of_another_length_is_an_error(named_rows):
    with pytest.raises(ValueError, match="'b': expected 2 rows, got 3"):
        named_rows(["a", "b"], [[1, 2], [1, 2, 3]], 2)


def test_names_and_columns_must_match(named_rows):
    with pytest.raises(ValueError, match="zip"):
        named_rows(["a"], [[1], [2]], 1)
