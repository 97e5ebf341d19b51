"""Delays and number of reconnects of a source."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.streams import Reconnect
from streaminfer.streams.sources.reconnect import Backoff

S = 1_000_000_000


@given(st.floats(0.01, 5.0), st.floats(5.0, 100.0), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=100))
def test_delay_doubles_up_to_the_longest(first_s, max_s, chances):
    """The n-th delay is between half and all of the smaller of ``first_s * 2**n`` and ``max_s``."""
    chance = iter(chances)
    backoff = Backoff(Reconnect(first_s=first_s, max_s=max_s), lambda: next(chance))
    for number in range(len(chances)):
        whole = min(max_s, first_s * 2.0**number)
        assert whole / 2 - 1e-9 <= backoff.failed(0) / S <= whole + 1e-9


def test_only_a_lasting_connection_resets_the_delay():
    """A connection that lasts less long than the last delay counts as one more failure."""
    backoff = Backoff(Reconnect(first_s=1.0, max_s=100.0), lambda: 1.0)
    assert [backoff.failed(0) for _ in range(3)] == [1 * S, 2 * S, 4 * S]
    backoff.connected(10 * S)
    assert backoff.failed(13 * S) == 8 * S
    backoff.connected(30 * S)
    backoff.connected(37 * S)  # a second call while connected does not restart the measured time
    assert backoff.failed(38 * S) == 1 * S


def test_delay_is_one_that_a_thread_can_wait():
    backoff = Backoff(Reconnect(first_s=1e300, max_s=1e300), lambda: 1.0)

    assert backoff.failed(0) / S <= threading.TIMEOUT_MAX


def test_reconnects_end_after_max_attempts():
    backoff = Backoff(Reconnect(attempts=2))
    assert backoff.failed(0) is not None
    assert backoff.failed(0) is not None
    assert backoff.failed(0) is None


@pytest.mark.parametrize(
    ("argument", "value"), [("first_s", 0.0), ("max_s", -1.0), ("attempts", 0), ("first_s", "1"), ("attempts", 1.5)]
)
def test_wrong_settings_are_named(argument, value):
    with pytest.raises((ValueError, TypeError), match=f"{argument}: expected"):
        Reconnect(**{argument: value})
