"""Temporary overload by cameras in the live demo, in virtual time, so that nothing depends on the machine."""

import numpy as np
import pytest

import streaminfer as si
from streaminfer.testing import ScriptedBackend, run

SERVICE_S = 0.008
PERIOD_S = 1 / 24


def look(batch):
    """Return the outputs for frames without a face."""
    return [
        {"boxes": np.zeros((2304, 16), np.float32), "scores": np.full((2304, 1), -9, np.float32)} for _ in batch.rows
    ]


@pytest.fixture
def frames(demo):
    return demo("demo.video").Frames("clip", np.zeros((48, 4, 4, 3), np.uint8), 24.0)


@pytest.fixture(scope="module")
def found():
    return {}


@pytest.fixture
def overload(demo, frames, found):
    """Return the outcome of six seconds of a detector that completes 125 frames a second.

    It gets the frames of 2 cameras, then of 6, one of which sends five times as many as the others.
    """

    async def main(loop):
        def make_service(_name):
            batcher = si.AdaptiveBatcher(max_batch_size=1, max_queue_size=64)
            return si.Stack(batcher, ScriptedBackend(then=look, duration_s=SERVICE_S), clock=loop.clock)

        return await demo("demo.overload").overload(frames, 6.0, lambda _: None, make_service)

    if not found:
        found["overload"] = run(main)
    return found["overload"]


def test_every_frame_of_an_overload_is_accounted_for(overload):
    total = overload.total
    assert overload.capacity == pytest.approx(1 / SERVICE_S, rel=0.05)
    assert (overload.calm, overload.most) == (2, 6)
    assert overload.load == pytest.approx(10 * 24 * SERVICE_S, rel=0.05)
    assert total.received == total.delivered + total.failed + sum(total.dropped.values())
    assert (total.waiting, total.in_flight, total.failed, total.open_streams) == (0, 0, 0, 0)
    assert total.received == pytest.approx(2 * 6 * 24 + (3 + 5) * 2 * 24, abs=12)
    assert total.delivered == len(overload.camera) == len(overload.age_s)
    assert total.dropped["stale"] > 100


def test_results_do_not_age_with_the_overload(overload):
    """A result is at most a frame interval and two service times old, however long the overload lasts."""
    calm, busy, after = (overload.ages_of(third) for third in range(3))
    assert max(calm.max(), np.quantile(after, 0.9)) <= 3 * SERVICE_S
    assert busy.max() <= PERIOD_S + 2 * SERVICE_S
    middle = len(busy) // 2
    assert busy[middle:].max() <= 1.2 * busy[:middle].max()


def test_a_greedy_camera_gets_no_more_than_the_others(overload):
    assert overload.fairness >= 0.98
    assert overload.shares.sum() == pytest.approx(1 / SERVICE_S, rel=0.1)
    assert overload.shares[-1] <= 1.3 * overload.shares[:-1].mean()


def test_overload_is_described_in_words(demo, overload):
    said = demo("demo.sentences").describe_overload(overload)
    assert said.line.startswith(
        "2 cameras, and for a while 6, which send 1.9 times what the face detector completes: 99% of"
    )
    total = overload.total
    assert f"{total.received:,} captured = {total.delivered:,} answered + " in said.details[1]
    assert "because a newer frame came first" in said.details[1]
    assert (
        f"Jain's index of fairness over those that send at the same rate is {overload.fairness:.3f} (1"
        in said.details[2]
    )


def test_failing_camera_driver_ends_the_measurement(demo, frames):
    """A camera whose driver fails ends the measurement with the driver's error."""

    async def main(loop):
        async with si.Stack(ScriptedBackend(then=look), clock=loop.clock) as service:
            cameras = demo("demo.cameras").Cameras(service, frames)
            cameras.add(0, place=99)  # the clip has no such frame
            try:
                await cameras.live.measure(1.0)
            finally:
                await cameras.live.session.aclose()

    with pytest.raises(IndexError):
        run(main)
