"""MLPerf LoadGen as a driver."""

import asyncio
import math

import pytest

from streaminfer.loadtest import run_mlperf

SETTINGS = {"inputs": [1.0, 2.0], "rate": 100.0, "duration_s": 0.5}


async def echo(x):
    return x


async def failing(_x):
    raise ValueError("never")


def test_fast_service_is_measured():
    """Its latency is far below a limit of seconds."""
    result = asyncio.run(run_mlperf(echo, slo_s=5.0, **SETTINGS))

    assert 0 < result.p99_s < 5.0
    assert "Scenario : Server" in result.summary


def test_failures_are_late():
    """A service that fails is not valid."""
    result = asyncio.run(run_mlperf(failing, slo_s=0.1, **SETTINGS))

    assert not result.valid
    assert result.p99_s > 1.0


def test_wrong_rate():
    """The message names the argument."""
    with pytest.raises(ValueError, match="rate: expected a finite number > 0, got inf"):
        asyncio.run(run_mlperf(echo, slo_s=0.1, **{**SETTINGS, "rate": math.inf}))
