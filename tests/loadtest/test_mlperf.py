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


def test_failures_are_late(caplog):
    """A service that fails is not valid, and the log says why."""
    result = asyncio.run(run_mlperf(failing, slo_s=0.1, **SETTINGS))

    assert not result.valid
    assert result.p99_s > 1.0
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "a request of the run failed: ValueError: never"
    ]


@pytest.mark.parametrize("error", [asyncio.CancelledError, None], ids=["cancels itself", "hangs"])
def test_no_response(error, monkeypatch):
    """A call that is cancelled by its service or never ends is late, and the test ends."""
    monkeypatch.setattr("streaminfer.loadtest.mlperf.DRAIN_S", 0.3)

    async def silent(_x):
        if error is not None:
            raise error
        await asyncio.Future()

    assert not asyncio.run(run_mlperf(silent, slo_s=0.01, **SETTINGS)).valid


def test_error_that_ends_the_run():
    """What is no `Exception` is raised."""

    class Stop(BaseException):
        """Of an application."""

    async def stop(_x):
        raise Stop

    with pytest.raises(Stop):
        asyncio.run(run_mlperf(stop, slo_s=0.01, **SETTINGS))


def test_cancelled():
    """A cancelled run ends with LoadGen's schedule, and cancels what is in flight."""
    sent = []

    async def hang(x):
        sent.append(asyncio.current_task())
        await asyncio.Future()

    async def main():
        test = asyncio.create_task(run_mlperf(hang, slo_s=0.01, **SETTINGS))
        while not sent:
            await asyncio.sleep(0)
        test.cancel()
        await asyncio.wait([test])
        await asyncio.wait(sent)
        return test.cancelled(), all(task.cancelled() or task.done() for task in sent)

    assert asyncio.run(main()) == (True, True)


def test_wrong_rate():
    """The message names the argument."""
    with pytest.raises(ValueError, match="rate: expected a finite number > 0, got inf"):
        asyncio.run(run_mlperf(echo, slo_s=0.1, **{**SETTINGS, "rate": math.inf}))
