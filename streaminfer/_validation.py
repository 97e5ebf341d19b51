"""Checks of constructor arguments: the message names the argument, what was expected and what came."""

import math
import numbers
from collections.abc import Callable
from typing import Any

__all__ = [
    "check_choice",
    "check_count",
    "check_duration",
    "check_instance",
    "check_number",
    "expected",
]


def expected(name: str, expectation: str, value: object) -> str:
    """The one sentence that every argument error uses."""
    return f"{name}: expected {expectation}, got {value!r} ({type(value).__name__})"


def check_duration(name: str, value: object, *, positive: bool = False) -> float:
    """A finite number of seconds, ≥ 0 (or > 0 where ``positive``).

    Raises:
        TypeError: not a real number.
        ValueError: NaN, infinite, negative, or zero where it must be positive.
    """
    what = "a finite number of seconds " + ("> 0" if positive else "≥ 0")
    return check_number(name, value, what, lambda it: 0.0 < it < math.inf or (it == 0.0 and not positive))


def check_number(name: str, value: object, what: str, fits: Callable[[float], bool]) -> float:
    """A real number that ``fits``; ``what`` says in words which ones do.

    Raises:
        TypeError: not a real number (a bool is none).
        ValueError: it does not fit.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(expected(name, what, value))
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not fits(number):
        raise ValueError(expected(name, what, value))
    return number


def check_count(name: str, value: object, *, at_least: int = 1, at_most: int | None = None) -> int:
    """A whole number of at least ``at_least``, and at most ``at_most`` where that is given.

    Raises:
        TypeError: not a whole number (a bool or a float is none).
        ValueError: too small or too large.
    """
    what = f"a whole number ≥ {at_least}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(expected(name, what, value))
    number = int(value.__index__())
    if number < at_least:
        raise ValueError(expected(name, what, value))
    if at_most is not None and number > at_most:
        raise ValueError(expected(name, f"{what} and ≤ {at_most}", value))
    return number


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """One of a few words.

    Raises:
        TypeError: not a string.
        ValueError: another string.
    """
    what = "one of " + ", ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(expected(name, what, value))
    if value not in choices:
        raise ValueError(expected(name, what, value))
    return value


def check_instance(name: str, value: Any, test: Callable[[Any], bool], expectation: str) -> None:
    """Anything that ``test`` accepts.

    Raises:
        TypeError: ``test`` says no.
    """
    if not test(value):
        raise TypeError(expected(name, expectation, value))
