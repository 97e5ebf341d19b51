"""What the tests of the circuit breaker share."""

import pytest

from streaminfer.testing import FakeClock


@pytest.fixture
def clock():
    return FakeClock(1_000)
