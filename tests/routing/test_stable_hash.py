"""What decides where the requests of a key go is the same for keys that are equal."""

import enum

import numpy as np
import pytest

from streaminfer.routing.stable_hash import stable_hash


class Tenant(enum.StrEnum):
    """Text of an application's own type."""

    ACME = "acme"


class Token(bytes):
    """Bytes of an application's own type."""


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
    """Also in another process, whose own hashes of text and bytes are others."""
    assert [stable_hash(each) for each in (key, *equal)] == [expected] * (1 + len(equal))


def test_a_salt_and_other_keys():
    assert stable_hash("acme") != stable_hash("acme", b"salt") != stable_hash("acme", b"other")
    assert stable_hash(("acme", -1)) == hash(("acme", -1)) % 2**64
