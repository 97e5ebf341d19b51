"""Interleaved runs."""

import asyncio

import numpy as np
import pytest

from streaminfer.loadtest import Poisson, compare, interleave


def test_turns_alternate_on_one_schedule(virtually):
    """Both runs of a pair have one schedule, the first service alternates, and the slower service is found."""
    order = []

    def service(name, factor):
        rng = np.random.default_rng(1)

        async def serve(_inputs):
            if not order or order[-1] != name:
                order.append(name)
            await asyncio.sleep(factor * 0.01 * rng.lognormal(0, 0.3))

        return serve

    before, after = virtually(
        lambda: interleave(
            service("old", 1.0),
            service("new", 1.5),
            pairs=6,
            seed=40,
            arrivals=Poisson(250.0),
            inputs=[1],
            duration_s=1.5,
            slo_s=0.1,
        )
    )

    assert order == ["old", "new", "old", "new", "old", "new", "old"]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.record.due_s, other.record.due_s)
    assert [report.seed for report in before] == [40, 41, 42, 43, 44, 45]
    assert compare(before, after).regressed


def test_pairs_that_would_never_end(virtually):
    """The number of pairs has a limit, and the message names it."""
    with pytest.raises(ValueError, match="pairs: expected a whole number ≥ 1 and ≤ 10000, got 1000000000000000"):
        virtually(lambda: interleave(print, print, pairs=10**39))
