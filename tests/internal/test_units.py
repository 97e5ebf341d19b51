"""Quantities as text."""

import pytest

from streaminfer._internal.units import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ns"),
        (3e-9, "3 ns"),
        (999e-9, "999 ns"),
        (1e-6, "1 µs"),
        (0.00099999, "1000 µs"),
        (0.012345678, "12.35 ms"),
        (1.0, "1 s"),
        (119.0, "119 s"),
        (300.0, "5 min"),
        (3600.0, "60 min"),
        (123456.7, "34.29 h"),
        (30 * 86400.0, "30 days"),
        (12345 * 86400.0, "12,345 days"),
        (float("nan"), "nan"),
        (None, "not known"),
    ],
)
def test_format_duration(seconds, text):
    """A duration has at most four significant digits, or its longer whole part, and the unit that suits it."""
    assert format_duration(seconds) == text
