"""`stable_hash` is the same for equal keys, so that their requests go to the same service."""

import enum
import fractions
import uuid

import numpy as np
import pytest

from streaminfer.routing.stable_hash import HASH_SPAN, stable_hash


class Tenant(enum.StrEnum):
    """Text of an application's own type."""

    ACME = "acme"


class Token(bytes):
    """Bytes of an application's own type."""


class Ticket:
    """Object that is equal only to itself."""

    def __init__(self, number):
        self.number = number


@pytest.mark.parametrize(
    ("key", "equal", "expected"),
    [
        ("acme", [Tenant.ACME, np.str_("acme")], 13958130709236820202),
        (b"acme", [Token(b"acme"), np.bytes_(b"acme")], 15387447339374118637),
        (7, [np.int64(7), np.uint8(7)], 16667848380713045890),
    ],
    ids=["text", "bytes", "number"],
)
def test_equal_keys_have_one_hash(key, equal, expected):
    """Equal keys of several types have one hash in every process, although Python's own hashes differ."""
    assert [stable_hash(each) for each in (key, *equal)] == [expected] * (1 + len(equal))


def test_a_salt_gives_another_hash():
    for key in ("acme", ("acme", -1)):
        assert len({stable_hash(key), stable_hash(key, b"salt"), stable_hash(key, b"other")}) == 3
        assert stable_hash(key) == stable_hash(key)


@pytest.mark.parametrize(
    "key_of",
    [str, lambda number: uuid.UUID(int=number << 90 | number), lambda number: fractions.Fraction(number, 7), Ticket],
    ids=["text", "identifier", "fraction", "object"],
)
def test_hashes_are_even(key_of):
    """Each tenth of the span has about a tenth of the keys, of whatever type they are."""
    keys = [key_of(number) for number in range(2000)]

    tenths = np.bincount([10 * stable_hash(key) // HASH_SPAN for key in keys], minlength=10)

    assert tenths.size == 10
    assert 130 < tenths.min() <= tenths.max() < 270
