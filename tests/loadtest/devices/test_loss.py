"""Bursty loss has the given share of lost frames and the given mean run."""

import itertools
import random

import pytest

from streaminfer.loadtest.devices.loss import GilbertElliott


@pytest.mark.parametrize(("loss", "run"), [(0.01, 1.0), (0.05, 4.0), (0.3, 2.0)])
def test_loss_share_and_run_length_match_the_settings(loss, run):
    process = GilbertElliott(loss, run, random.Random(1))
    lost = [process.loses() for _ in range(400_000)]
    runs = [len(list(group)) for value, group in itertools.groupby(lost) if value]

    assert sum(lost) / len(lost) == pytest.approx(loss, rel=0.05)
    assert sum(runs) / len(runs) == pytest.approx(max(run, 1 / (1 - loss)), rel=0.05)


def test_without_loss_no_randomness_is_used():
    chance = random.Random(1)
    process = GilbertElliott(0.0, 1.0, chance)

    assert not any(process.loses() for _ in range(100))
    assert chance.random() == random.Random(1).random()
