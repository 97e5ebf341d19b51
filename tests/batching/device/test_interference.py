"""`Interference`: slowdowns learned from batches that ran together, and models that are kept apart."""

import pytest

from streaminfer.batching.device.interference import Interference


def together(interference, start_ns, took_ns=150, expected_ns=100):
    """Run a batch of each model at the same time; return the nanoseconds that each would take alone."""
    interference.begin("1", "a", start_ns)
    interference.begin("2", "b", start_ns)
    return [interference.end(token, expected_ns, start_ns + took_ns) for token in "12"]


def test_a_batch_alone_shows_no_slowdown():
    interference = Interference()
    interference.begin("1", "a", 100)

    assert interference.end("1", 50, 180) == 80
    assert interference.slowdowns() == {}


def test_slowdown_is_duration_over_duration_alone():
    """The slowdown is the duration of a batch beside another one, divided by its duration alone."""
    interference = Interference()

    assert together(interference, 0) == [100, 100]
    assert interference.slowdowns() == pytest.approx({("a", "b"): 1.5, ("b", "a"): 1.5})


def test_time_beside_another_counts_by_its_share():
    interference = Interference()
    interference.begin("1", "a", 0)
    interference.begin("2", "b", 60)
    interference.end("2", 0, 120)

    assert interference.end("1", 90, 120) == pytest.approx(90, abs=1)
    assert interference.slowdowns()["a", "b"] == pytest.approx(1 + (120 / 90 - 1) / 0.5)


def test_a_failed_batch_teaches_nothing():
    interference = Interference()
    interference.begin("1", "a", 0)
    interference.begin("2", "b", 0)
    interference.end("1", 0, 500)

    assert interference.slowdowns() == {}


def test_slowdown_applies_while_the_other_model_runs():
    interference = Interference()
    together(interference, 0)
    assert interference.slowdown("a") == 1.0

    interference.begin("3", "b", 200)

    assert interference.slowdown("a") == pytest.approx(1.5)


def test_models_slower_together_are_kept_apart():
    """Models that do less work together than in turn are kept apart until they are tried again."""
    interference = Interference()
    together(interference, 0, took_ns=300)
    held = []
    for number in range(1, 200):
        interference.begin(number, "b", number * 1000)
        held.append(interference.keeps_apart("a"))
        interference.end(number, 100, number * 1000 + 100)

    assert all(held[:100])
    assert not all(held)


def test_models_faster_together_are_not_kept_apart():
    """Models that do more work together than in turn are not kept apart."""
    interference = Interference()
    together(interference, 0)
    interference.begin("3", "b", 200)

    assert not interference.keeps_apart("a")
