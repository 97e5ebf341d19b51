"""Checks of arguments, and records made from tables of files."""

import attrs
import numpy as np
import pytest

from streaminfer._internal.validation import check_clock, check_count, field_check, make_from_table


@attrs.frozen
class Record:
    """A name and a count."""

    name: str
    count: int = attrs.field(default=1, validator=field_check(check_count))


def test_a_table_becomes_a_record():
    assert make_from_table(Record, {"name": "a", "count": 2}, "part") == Record("a", 2)
    assert make_from_table(Record, {"name": "a"}, "part") == Record("a")


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ([], TypeError, "expected a table, got []"),
        ({"name": "a", "size": 1}, ValueError, "expected keys among name, count, got 'size'"),
        ({"count": 1}, ValueError, "expected the key 'name', got count"),
        ({}, ValueError, "expected the key 'name', got none"),
    ],
    ids=["no table", "unknown", "missing", "empty"],
)
@pytest.mark.parametrize("path", ["part", ""], ids=["a part", "the whole"])
def test_a_table_that_does_not_fit_is_named(table, error, message, path):
    with pytest.raises(error) as raised:
        make_from_table(Record, table, path, "the file")

    assert str(raised.value).startswith(f"{path or 'the file'}: {message}")


def test_a_wrong_value_is_named_with_its_path():
    with pytest.raises(ValueError, match=r"^part\.count: expected a whole number ≥ 1, got 0"):
        make_from_table(Record, {"name": "a", "count": 0}, "part")
    with pytest.raises(ValueError, match=r"^count: expected"):
        make_from_table(Record, {"name": "a", "count": 0}, "", "the file")


@pytest.mark.parametrize("value", [True, 1.0, "1", np.arange(2), int], ids=str)
def test_value_that_is_no_whole_number_is_named(value):
    """The error names the argument, also for an array and a class, whose `__index__` raises errors of its own."""
    with pytest.raises(TypeError, match=r"^size: expected a whole number ≥ 1, got "):
        check_count("size", value)


def test_clock_in_seconds_is_rejected():
    """A clock that returns seconds is rejected, because its instants would pass for nanoseconds."""
    with pytest.raises(TypeError, match=r"clock\(\): expected a whole number of nanoseconds, .* got 2\.5 \(float\)"):
        check_clock("clock", lambda: 2.5)


def test_numbers_of_numpy_become_those_of_python():
    """A clock and a field with NumPy numbers have Python's, which neither overflow nor round; others are unchanged."""
    clock, now = lambda: 5, check_clock("clock", lambda: np.int64(2**62))
    record = Record("a", np.uint8(200))

    assert check_clock("clock", clock) is clock
    assert (type(now()), now() * 4) == (int, 2**64)
    assert (type(record.count), record.count * 2) == (int, 400)


def test_a_clock_that_cannot_be_read_yet_passes():
    """A clock that cannot be read yet, such as that of a loop which a test makes later, is accepted."""
    loops = []

    check_clock("clock", lambda: loops[-1].now_ns)
