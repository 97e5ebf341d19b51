"""Random numbers of the choice among replicas."""

import pytest

from streaminfer.routing.replicas._draws_cy import UniformDraws, unit_hash

pytestmark = pytest.mark.uncompiled


def test_draws_are_those_of_splitmix64():
    """The draws are the first outputs of Vigna's reference program for the seed 1234567, scaled to 0 to 1."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    draws = UniformDraws(1234567)
    assert [draws.next() for _ in published] == [((number >> 11) + 0.5) / 2**53 for number in published]


def test_draws_are_above_0_and_below_1():
    draws = UniformDraws(2**63 - 1)
    drawn = [draws.next() for _ in range(10_000)]
    assert 0.0 < min(drawn) < 0.001
    assert 0.999 < max(drawn) < 1.0
    assert 0.0 < unit_hash(0) < unit_hash(2**64 - 1) < 1.0
