import importlib

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import ScriptedBackend


@pytest.fixture
def example(_examples_can_be_imported):
    return importlib.import_module("live_cameras")


async def test_cameras_beyond_capacity_get_fresh_results(example, loop):
    """Cameras that send twice the capacity have fresh results.

    Half of the frames are dropped for newer ones, and results are at most a frame interval and two batches old.
    """
    model = ScriptedBackend(duration_s=0.01)
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=1), model, clock=loop.clock) as service:
        statistics = await example.watch(service, [np.zeros(4)] * 3, 25.0, cameras=8, seconds=4.0)

    assert statistics.received == 8 * 100
    assert statistics.delivered == pytest.approx(400, abs=10)
    assert set(statistics.dropped) == {"stale"}
    assert statistics.ages.quantile(0.99) <= 0.04 + 2 * 0.01


async def test_errors_are_reported_and_cameras_continue(example, loop, capsys):
    model = ScriptedBackend(ValueError("broken"))
    async with si.Stack(si.AdaptiveBatcher(max_batch_size=1), model, clock=loop.clock) as service:
        statistics = await example.watch(service, [np.zeros(4)], 10.0, cameras=1, seconds=1.0)

    assert (statistics.delivered, statistics.failed) == (9, 1)
    assert "camera 0: frame 0: BackendError" in capsys.readouterr().out
