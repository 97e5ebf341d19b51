"""Checks of arguments, and records made from tables of files."""

import math
from fractions import Fraction
from functools import partial

import attrs
import numpy as np
import pytest

from streaminfer._internal.validation import brief, check_clock, check_count, check_number, field_check, make_from_table
from streaminfer.http_edge import EdgePolicy
from streaminfer.loadtest.devices import CameraProfile
from streaminfer.streams.sources.formats import VideoFormat
from streaminfer.telemetry import AlertPair, BurnSignal

_share = field_check(check_number, "a share", lambda it: 0 <= it <= 1)


@attrs.frozen
class Shares:
    """A share, and several."""

    share: float = attrs.field(default=0.5, validator=_share)
    several: tuple[float, ...] = attrs.field(default=(), validator=attrs.validators.deep_iterable(_share))


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


@pytest.mark.parametrize("given", [np.float32(0.25), np.float64(0.25), Fraction(1, 4)], ids=repr)
def test_field_has_a_python_number(given):
    """A number of another library is stored as the Python number that the check returns; a Python number stays."""
    assert type(Shares(given).share) is float
    assert Shares(given) == Shares(0.25)
    assert type(Record("a", np.int64(3)).count) is int
    assert type(Shares(1).share) is int


def test_check_of_elements_keeps_the_tuple():
    """A check of each element does not put the element in place of the tuple."""
    several = (np.float32(0.5), np.float32(1.0))

    assert Shares(several=several).several is several


@pytest.mark.parametrize("huge", [10**400, Fraction(10**400), -Fraction(10**400)], ids=["int", "fraction", "negative"])
def test_number_too_large_for_a_float_is_named(huge):
    """A number that no float can hold is out of range, whatever its sign."""
    with pytest.raises(ValueError, match="share: expected a share, got"):
        Shares(huge)
    with pytest.raises(ValueError, match="size: expected a finite number or infinity"):
        check_number("size", -abs(huge), "a finite number or infinity", lambda it: it > -math.inf)


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


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (partial(AlertPair, long_s=3600.0, short_s=300.0), "burn_rate"),
        *((BurnSignal, field) for field in ("window_s", "starts_at", "minimum_events", "grace_s")),
        *((partial(CameraProfile, name="a"), field) for field in ("width", "height", "rate", "noise")),
        (EdgePolicy, "fresh_s"),
        (VideoFormat, "rate"),
    ],
)
def test_records_have_python_numbers(make, field):
    """The fields of records of all families have Python's numbers."""
    assert type(getattr(make(**{field: np.int16(32)}), field)) in {int, float}


def test_a_clock_that_cannot_be_read_yet_passes():
    """A clock that cannot be read yet, such as that of a loop which a test makes later, is accepted."""
    loops = []

    check_clock("clock", lambda: loops[-1].now_ns)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_brief_counts_the_bytes(kind):
    """A long value is cut, and the text has its whole length."""
    assert brief(kind(400)).endswith("... of 400 bytes")
