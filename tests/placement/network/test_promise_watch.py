"""Broken promises raise an alarm, and kept promises do not."""

import math

import numpy as np
import pytest

from streaminfer.placement.network.promise_watch import LatencyPromise, PromiseWatch

PROMISE = LatencyPromise(latency_s=0.2, share=0.99)


def first_alarm(watch, latencies_s):
    return next((at for at, latency_s in enumerate(latencies_s) if watch.observe("a", float(latency_s))), None)


def test_promise_that_holds_raises_no_alarm():
    """If exactly the promised share is on time, 100,000 requests raise no more alarms than `false_alarm` allows."""
    rng = np.random.default_rng(0)
    watch = PromiseWatch({"a": PROMISE}, block=10, false_alarm=0.001)

    alarms = 0
    for latency_s in np.where(rng.random(100_000) < 0.01, 1.0, 0.1):
        if watch.observe("a", float(latency_s)):
            alarms += 1
            watch.reset("a")

    assert alarms <= 10


@pytest.mark.parametrize("before", [0, 20_000], ids=["new", "old"])
def test_broken_promise_is_found_soon(before):
    """Four times as many late requests as promised raise an alarm within 1,000, also after 20,000 good requests."""
    rng = np.random.default_rng(1)
    watch = PromiseWatch({"a": PROMISE})
    good = np.where(rng.random(before) < 0.005, 1.0, 0.1)
    assert first_alarm(watch, good) is None

    found = first_alarm(watch, np.where(rng.random(5_000) < 0.04, 1.0, 0.1))

    assert found < 1_000
    assert watch.untenable() == ("a",)


def test_alarm_is_raised_once_until_reset():
    watch = PromiseWatch({"a": PROMISE, "b": PROMISE})

    assert sum(watch.observe("a", 1.0) for _ in range(100)) == 1
    watch.reset("a")
    assert watch.untenable() == ()
    assert sum(watch.observe("a", 1.0) for _ in range(100)) == 1


def test_late_requests_of_one_block_count_once():
    """Ten late requests in the same block are one observation."""
    alone, blocks = PromiseWatch({"a": PROMISE}), PromiseWatch({"a": PROMISE}, block=100)
    outage = [0.1] * 45 + [1.0] * 10 + [0.1] * 45

    assert first_alarm(alone, outage) is not None
    assert first_alarm(blocks, outage) is None


def test_missing_response_is_late():
    watch = PromiseWatch({"a": PROMISE})
    watch.observe("a", math.inf)
    watch.observe("a", 0.1)

    state = watch.statistics()["a"]
    assert (state.requests, state.kept, state.untenable) == (2, 0.5, False)
    assert 0 < state.evidence < 1
    assert state.to_dict()["promise"] == {"latency_s": 0.2, "share": 0.99}


def test_repr_and_html():
    watch = PromiseWatch({"Lyon": PROMISE})

    assert repr(watch) == "<PromiseWatch: 1 promises, 0 untenable>"
    assert "99.0% in 200 ms" in watch._repr_html_()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromiseWatch([PROMISE]), "promises: expected LatencyPromises by name"),
        (lambda: PromiseWatch({"a": 0.1}), "promises: expected LatencyPromise"),
        (lambda: PromiseWatch({"a": LatencyPromise(latency_s=0.1, share=1.0)}), "share of 'a'"),
        (lambda: PromiseWatch({"a": LatencyPromise(latency_s=0.0, share=0.9)}), "latency_s of 'a'"),
        (lambda: PromiseWatch({}, block=0), "block"),
        (lambda: PromiseWatch({}, false_alarm=0), "false_alarm"),
        (lambda: PromiseWatch({"a": PROMISE}).observe("b", 0.1), "name: expected one of 'a'"),
        (lambda: PromiseWatch({"a": PROMISE}).reset("b"), "name: expected one of 'a'"),
        (lambda: PromiseWatch({"a": PROMISE}).observe(["a"], 0.1), "name: expected one of 'a'"),
        (lambda: PromiseWatch({"a": PROMISE}).observe("a", "0.1"), "latency_s: expected a number"),
    ],
    ids=["mapping", "kind", "share", "latency", "block", "false alarm", "observe", "reset", "a list", "text"],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()
