"""Checks of arguments; each message names the argument, the expectation and the actual value."""

import contextlib
import math
import numbers
import operator
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, TypeAlias, TypeVar

from streaminfer._internal.signatures import signature_of

__all__ = [
    "LONGEST_S",
    "brief",
    "check_amount",
    "check_ascending",
    "check_choice",
    "check_clock",
    "check_count",
    "check_duration",
    "check_duration_ns",
    "check_instance",
    "check_number",
    "check_path",
    "check_secret",
    "check_share",
    "check_whole",
    "expected",
    "field_check",
    "is_name",
    "make_from_table",
]

MIN_SECRET_BYTES = 16
LONGEST_S = 1e9
"""Longest duration in seconds, 31 years, so that instants this far in the future fit 64 bits as nanoseconds."""
_LONGEST_NS = round(LONGEST_S * 1e9)
_PLAIN = (int, float, str)


def expected(name: str, expectation: str, value: object) -> str:
    """Return the sentence that all argument errors use."""
    return f"{name}: expected {expectation}, got {brief(value)} ({type(value).__name__})"


Accepted: TypeAlias = type | UnionType | Callable[[Any], Any]
C = TypeVar("C", bound=str)
T = TypeVar("T")


class _Brief(reprlib.Repr):
    """`reprlib.Repr` that never builds the whole text of a large value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = self.maxdeque = (
            self.maxarray
        ) = 10
        self.maxstring = self.maxlong = self.maxother = 300

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(x, level) if len(x) <= self.maxstring else f"{x[:100]!r}... of {len(x)} characters"

    def repr_bytes(self, x: bytes | bytearray, level: int) -> str:  # noqa: ARG002 - the signature that reprlib calls
        return repr(x) if len(x) <= self.maxstring else f"{x[:100]!r}... of {len(x)} bytes"

    repr_bytearray = repr_bytes

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if len(x) <= self.maxdict and level > 0:  # in the order of the dictionary; reprlib sorts
            return (
                "{" + ", ".join(f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in x.items()) + "}"
            )
        return super().repr_dict(x, level)

    def repr_ndarray(self, x: Any, level: int) -> str:  # noqa: ARG002 - the signature that reprlib calls
        return repr(x) if x.size <= self.maxlist else f"{x.dtype}{list(x.shape)}"


_BRIEF = _Brief()


def brief(value: object) -> str:
    """Return the ``repr`` of a value, shortened if it is long: a message must not be as large as a wrong input."""
    return _BRIEF.repr(value)


def check_duration(name: str, value: object, *, positive: bool = False) -> float:
    """Return a duration as a float: a finite number of seconds, ≥ 0, or > 0 if ``positive``.

    Raises:
        TypeError: not a real number.
        ValueError: NaN, infinite, negative, or zero where it must be positive.
    """
    return check_amount(name, value, positive=positive, unit=" of seconds")


def check_amount(name: str, value: object, *, positive: bool = False, unit: str = "") -> float:
    """Return a finite number, ≥ 0, or > 0 if ``positive``; ``unit`` follows the word "number" in the errors.

    Raises:
        TypeError, ValueError: as :func:`check_duration`.
    """
    expectation = f"a finite number{unit} {'> 0' if positive else '≥ 0'}"
    return check_number(name, value, expectation, lambda it: 0.0 < it < math.inf or (it == 0.0 and not positive))


def check_duration_ns(name: str, value: object, *, positive: bool = False, longest_ns: int = _LONGEST_NS) -> int:
    """Return a duration in seconds as whole nanoseconds, at most ``longest_ns``; at least 1 if ``positive``.

    Raises:
        TypeError, ValueError: as :func:`check_duration`.
    """
    duration_ns = check_duration(name, value, positive=positive) * 1e9  # may be infinite, which has no whole number
    return max(round(min(duration_ns, longest_ns)), int(positive))


def check_number(name: str, value: object, expectation: str, fits: Callable[[float], bool]) -> float:
    """Return a real number for which ``fits`` is true; ``expectation`` describes such numbers.

    Raises:
        TypeError: not a real number (a bool is not one).
        ValueError: ``fits`` is false.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(expected(name, expectation, value))
    try:
        number = float(value)
    except OverflowError:
        number = -math.inf if value < 0 else math.inf
    if not fits(number):
        raise ValueError(expected(name, expectation, value))
    return number


def check_share(name: str, value: object) -> float:
    """Return a share between 0 and 1, so far from both that quantiles of distributions are finite.

    Raises:
        TypeError, ValueError: not such a number.
    """
    expectation = "a share between 0 and 1, at least 1e-9 from both"
    return check_number(name, value, expectation, lambda share: 1e-9 <= share <= 1 - 1e-9)


def check_whole(name: str, value: Any, expectation: str) -> int:
    """Return any whole number; ``expectation`` describes the accepted numbers.

    Raises:
        TypeError: not a whole number (a bool or a float is not one).
    """
    with contextlib.suppress(TypeError):  # raised for arrays, classes and others without an index
        if not isinstance(value, bool):
            return operator.index(value)
    raise TypeError(expected(name, expectation, value))


def check_clock(name: str, clock: Any) -> Any:
    """Return a clock of whole nanoseconds, or ``None``, after reading it once; its integers are made Python's.

    A clock that raises is returned: it may belong to an event loop that does not run yet.

    Raises:
        TypeError: not a callable, or it returns something else, such as seconds.
    """
    check_instance(name, clock, lambda it: it is None or callable(it), "a callable or None")
    if clock is None:
        return None
    try:
        now_ns = clock()
    except Exception:  # noqa: BLE001 - the code that reads it for the time sees the error
        return clock
    check_whole(f"{name}()", now_ns, "a whole number of nanoseconds, as time.monotonic_ns and time.time_ns return")
    if isinstance(now_ns, int):
        return clock
    return lambda: operator.index(clock())  # NumPy's overflow, and SQLite stores them as bytes


def check_count(name: str, value: object, *, at_least: int = 1, at_most: int | None = None) -> int:
    """Return a whole number of at least ``at_least`` and, if given, at most ``at_most``.

    Raises:
        TypeError: not a whole number (a bool or a float is not one).
        ValueError: too small or too large.
    """
    expectation = f"a whole number ≥ {at_least}"
    number = check_whole(name, value, expectation)
    if number < at_least:
        raise ValueError(expected(name, expectation, value))
    if at_most is not None and number > at_most:
        raise ValueError(expected(name, f"{expectation} and ≤ {at_most}", value))
    return number


def check_ascending(name: str, value: Any, expectation: str, *, at_most: int | None = None) -> tuple[int, ...]:
    """Return one or more ascending whole numbers from 1 as a tuple; ``expectation`` describes them.

    Raises:
        TypeError: not a sequence of whole numbers.
        ValueError: none, too small or too large, or not ascending.
    """
    check_instance(name, value, lambda it: isinstance(it, Sequence) and not isinstance(it, (str, bytes)), expectation)
    numbers = tuple(check_count(name, number, at_most=at_most) for number in value)
    if not numbers or any(a >= b for a, b in pairwise(numbers)):
        raise ValueError(expected(name, expectation, value))
    return numbers


def check_choice(name: str, value: object, choices: tuple[C, ...]) -> C:
    """Return a string that is one of ``choices``.

    Raises:
        TypeError: not a string.
        ValueError: another string.
    """
    expectation = "one of " + ", ".join(map(repr, choices))
    check_instance(name, value, str, expectation)
    for choice in choices:
        if choice == value:
            return choice
    raise ValueError(expected(name, expectation, value))


def check_instance(name: str, value: Any, accepted: Accepted, expectation: str) -> None:
    """Check a value; ``expectation`` describes the accepted ones.

    Args:
        name: the argument's name.
        value: the value.
        accepted: the types that are accepted, or a function that tells whether a value is.
        expectation: what is accepted, in words.

    Raises:
        TypeError: the value is not accepted.
    """
    if not (isinstance(value, accepted) if isinstance(accepted, type | UnionType) else accepted(value)):
        raise TypeError(expected(name, expectation, value))


def is_name(value: Any) -> bool:
    """Return whether a value is text that is not empty."""
    return isinstance(value, str) and value != ""


def check_path(name: str, value: Any) -> Path:
    """Return a path.

    Raises:
        TypeError: neither text nor a path, or with a null character, which no path has.
    """
    check_instance(name, value, lambda it: isinstance(it, (str, os.PathLike)) and "\0" not in str(it), "a path")
    return Path(value)


def check_secret(name: str, value: object, *, at_least: int = MIN_SECRET_BYTES, at_most: int | None = None) -> bytes:
    """Return secret bytes; error messages do not show them.

    Raises:
        TypeError: not bytes.
        ValueError: too few or too many.
    """
    expectation = f"{'' if at_least == at_most else 'at least '}{at_least} bytes"
    if not isinstance(value, bytes):
        raise TypeError(f"{name}: expected {expectation}, got {type(value).__name__}")
    if len(value) < at_least or (at_most is not None and len(value) > at_most):
        raise ValueError(f"{name}: expected {expectation}, got {len(value)}")
    return value


def field_check(check: Callable[..., object], *args: Any, optional: bool = False, **options: Any) -> Any:
    """Return an attrs validator that calls a check of this module with the field's name and value.

    What the check returns replaces a value of another library's type, such as a NumPy scalar, whose arithmetic differs
    from that of Python. Part of a value, such as an element of a tuple, stays.

    Args:
        check: the check.
        args: positional arguments of the check, after name and value.
        optional: whether ``None`` is accepted.
        options: keyword arguments of the check.
    """

    def validate(instance: object, attribute: Any, value: Any) -> None:
        if optional and value is None:
            return
        plain = check(attribute.name, value, *args, **options)
        if plain is not None and type(value) not in _PLAIN and getattr(instance, attribute.name, None) is value:
            object.__setattr__(instance, attribute.name, plain)  # the class may be frozen

    return validate


def make_from_table(make: Callable[..., T], table: Mapping[str, Any], path: str, description: str = "") -> T:
    """Call a constructor with a table from a file; errors about a key name its path.

    Args:
        make: takes the keys of the table as keyword arguments.
        table: the table.
        path: path of the table in its file; empty: it is the whole file.
        description: of the whole file, for messages.

    Raises:
        TypeError, ValueError: the table does not fit.
    """
    where = path or description
    check_instance(where, table, Mapping, "a table")
    parameters = signature_of(make).parameters
    for key in table:
        if key not in parameters:
            raise ValueError(expected(where, f"keys among {', '.join(parameters)}", key))
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in table:
            raise ValueError(f"{where}: expected the key {name!r}, got {', '.join(table) or 'none'}")
    try:
        return make(**table)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError  # subclasses may take other arguments
        raise kind(f"{path}.{error}" if path else str(error)) from error
