"""Capacity at an SLO, of simulated devices with a known capacity."""

import asyncio
import math

import numpy as np
import pytest

from streaminfer.loadtest import Constant, find_capacity
from streaminfer.loadtest.capacity.search import Capacity, CapacitySearch, Step

SLO_S = 0.05


def delays(gaps, work):
    """Return the latencies of a single server, from inter-arrival times and service times, by Lindley's recursion."""
    steps = np.concatenate([[0], np.cumsum(work[:-1] - gaps[1:])])
    return steps - np.minimum.accumulate(steps) + work


def latencies(rate, n, rng, *, sigma, mean_s=0.005):
    """Return the latencies of a single server with Poisson arrivals and lognormal service times."""
    gaps, work = rng.exponential(1 / rate, n), mean_s * rng.lognormal(-(sigma**2) / 2, sigma, n)
    return delays(gaps, work)


def known_capacity(sigma):
    """Return the rate at which 1 % of the requests are late, by bisection over millions of requests."""
    low, high = 100.0, 200.0
    for _ in range(10):
        rate = (low + high) / 2
        late = (latencies(rate, 500_000, np.random.default_rng(0), sigma=sigma) > SLO_S).mean()
        low, high = (rate, high) if late < 0.01 else (low, rate)
    return low


def late_share(rate, capacity, scale):
    return 1 / (1 + np.exp(min(700.0, np.log(capacity / rate) / scale)))


def search_all(search, measure):
    while (rate := search.next_rate) is not None:
        search.add(Step.of(rate, measure(rate)))
    return search.result()


class TestSearch:
    def test_noisy_device(self):
        """The median error of the capacity is below 1.5 %, and at least 10 of 12 intervals cover the capacity."""
        truth = known_capacity(0.2)
        found = []
        for seed in range(12):
            rng = np.random.default_rng(seed + 1)
            search = CapacitySearch(50.0, 400.0, seed=seed)
            found.append(
                search_all(search, lambda rate, rng=rng: latencies(rate, 20_000, rng, sigma=0.2)[2_000:] > SLO_S)
            )

        assert np.median([abs(each.rate / truth - 1) for each in found]) < 0.015
        assert sum(each.interval[0] <= truth <= each.interval[1] for each in found) >= 10

    def test_few_requests(self):
        """Each interval reaches beyond ±0.1 %, even if steps are so short that often no request is late."""
        truth, found = known_capacity(0.5), []
        for seed in range(30):
            rng = np.random.default_rng(seed)
            search = CapacitySearch(50.0, 400.0, seed=seed)
            found.append(search_all(search, lambda rate, rng=rng: latencies(rate, 600, rng, sigma=0.5)[60:] > SLO_S))

        assert all(each.interval[0] < 0.999 * each.rate and 1.001 * each.rate < each.interval[1] for each in found)
        assert np.median([abs(each.rate / truth - 1) for each in found]) < 0.05

    def test_late_by_chance_at_a_low_rate(self):
        """Late requests at the lowest rate are no crossing if all requests at the rates above are on time."""
        found = search_all(
            CapacitySearch(10.0, 1000.0), lambda rate: np.arange(1000) < (5 if rate == 10.0 else 1000 * (rate > 321.0))
        )

        assert found.rate == pytest.approx(321.0, rel=0.05)

    @pytest.mark.parametrize("objective", [0.2, 0.8])
    def test_low_objective(self, objective):
        """A low objective is searched too, although no multiple of its allowed share tells a miss from chance."""
        found = search_all(CapacitySearch(10.0, 1000.0, objective=objective), lambda rate: np.full(1000, rate > 321.0))
        missed = search_all(CapacitySearch(10.0, 1000.0, objective=objective), lambda _: np.full(1000, True))

        assert found.interval[0] <= 321.0 <= found.interval[1]
        assert missed.reason == "the objective is missed at 10/s, the lowest rate"

    def test_jump_is_bisected(self):
        """The search bisects the jump of a device that is always on time up to its capacity and never above it."""
        found = search_all(CapacitySearch(10.0, 1000.0, tolerance=0.005), lambda rate: np.full(1000, rate > 321.0))

        assert found.rate == pytest.approx(321.0, rel=0.005)
        assert found.interval[0] <= 321.0 <= found.interval[1]
        assert found.reason == ""

    @pytest.mark.parametrize("scale", [0.003, 0.01, 0.1])
    def test_steepness(self, scale):
        """The search finds the capacity whether the late share rises within a percent of the rate or within tens."""
        truth, found = 1000 * (0.01 / 0.99) ** scale, []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            search = CapacitySearch(100.0, 4000.0, seed=seed)
            found.append(search_all(search, lambda rate, rng=rng: rng.random(3000) < late_share(rate, 1000.0, scale)))

        assert np.median([abs(each.rate / truth - 1) for each in found]) < 0.01
        assert sum(each.interval[0] <= truth <= each.interval[1] for each in found) >= 18

    @pytest.mark.parametrize("degraded", [900.0, 400.0])
    def test_service_that_does_not_recover(self, degraded):
        """The result for a service that does not recover is its capacity after overload, and not that of the ramp."""
        rng = np.random.default_rng(1)
        tried = []

        def measure(rate):
            tried.append(rate)
            return rng.random(3000) < late_share(rate, degraded if max(tried) > 1000.0 else 1000.0, 0.01)

        found = search_all(CapacitySearch(100.0, 4000.0), measure)

        truth = degraded * (0.01 / 0.99) ** 0.01
        assert found.rate == pytest.approx(truth, rel=0.01)
        assert found.interval[0] <= truth <= found.interval[1]
        assert "931.3/s kept the objective before overload" in found.reason

    def test_late_in_few_incidents(self):
        """A queue that misses by chance some rates that it kept before is not reported as slower after overload."""
        said = []
        for seed in range(12):
            rng = np.random.default_rng(seed)
            search = CapacitySearch(100.0, 2000.0, seed=seed)
            found = search_all(
                search,
                lambda rate, rng=rng: (
                    latencies(rate, int(10 * rate), rng, sigma=0.5, mean_s=0.001)[int(rate) :] > SLO_S
                ),
            )
            said += ["before overload" in found.reason]

        assert not any(said)

    def test_interval_where_steps_differ(self):
        """At least 17 of 20 intervals cover the capacity, although steps at the same rate differ.

        Half of the steps at the capacity have no late request, and one in a hundred has a tenth of its requests late.
        """
        truth, covered = 1000 - np.log(100) / SLO_S, 0  # M/M/1
        for seed in range(20):
            rng = np.random.default_rng(seed + 1)

            def measure(rate, rng=rng):
                n = int(10 * rate)
                return delays(rng.exponential(1 / rate, n), rng.exponential(0.001, n))[n // 10 :] > SLO_S

            low, high = search_all(CapacitySearch(250.0, 2000.0, seed=seed), measure).interval
            covered += low <= truth <= high

        assert covered >= 17

    def test_interval_of_short_steps(self):
        """At least 27 of 30 intervals cover the capacity, although most steps at the capacity have no late request.

        The other steps have an incident with a few percent of their requests.
        """
        truth, covered = known_capacity(0.2), 0
        for seed in range(30):
            rng = np.random.default_rng(seed + 1000)
            search = CapacitySearch(50.0, 400.0, seed=seed)
            found = search_all(search, lambda rate, rng=rng: latencies(rate, 600, rng, sigma=0.2)[60:] > SLO_S)
            covered += found.interval[0] <= truth <= found.interval[1]

        assert covered >= 27

    @pytest.mark.parametrize("tolerance", [0.005, 0.02, 0.2])
    def test_jump_is_measured_on_both_sides(self, tolerance):
        """A jump has at least four steps on each side, because one step on time, or one late, can be chance."""
        found = search_all(CapacitySearch(10.0, 1000.0, tolerance=tolerance), lambda rate: np.full(1000, rate > 321.0))

        assert sum(0.88 * 321.0 < step.rate <= 321.0 for step in found.steps) >= 4
        assert sum(321.0 < step.rate < 1.12 * 321.0 for step in found.steps) >= 4

    def test_interval_of_service_slower_after_overload(self):
        """The interval covers the capacity of a service that is a little slower after an overload.

        The steps from before the overload overestimate the capacity, and no other step shows this.
        """
        truth, covered = 980.0 * (0.01 / 0.99) ** 0.01, 0
        for seed in range(30):
            rng, tried = np.random.default_rng(seed), []

            def measure(rate, rng=rng, tried=tried):
                tried.append(rate)
                return rng.random(3000) < late_share(rate, 980.0 if max(tried) > 1000.0 else 1000.0, 0.01)

            low, high = search_all(CapacitySearch(100.0, 4000.0, seed=seed), measure).interval
            covered += low <= truth <= high

        assert covered >= 28

    def test_lowest_rate_is_missed_after_overload(self):
        """The capacity of a service that misses all rates after an overload is between 0 and the lowest rate."""
        tried = []

        def measure(rate):
            tried.append(rate)
            return np.full(1000, max(tried) > 1000.0)

        found = search_all(CapacitySearch(100.0, 4000.0), measure)

        assert found.interval == (0.0, 100.0)
        assert "missed at 100/s, the lowest rate" in found.reason

    @pytest.mark.parametrize("scale", [0.003, 0.01, 0.1])
    @pytest.mark.parametrize(("low", "high"), [(0.1, 1.02), (0.1, 1.05), (0.98, 1.02), (0.995, 3.0)])
    def test_limits_are_near_the_capacity(self, scale, low, high):
        """The search tries no rate above the highest, and its interval covers a capacity that is near either limit."""
        truth, covered, most = 1000 * (0.01 / 0.99) ** scale, 0, 0.0
        for seed in range(10):
            rng = np.random.default_rng(seed)
            search = CapacitySearch(low * truth, high * truth, seed=seed)
            found = search_all(search, lambda rate, rng=rng: rng.random(3000) < late_share(rate, 1000.0, scale))
            covered += found.interval[0] <= truth <= found.interval[1]
            most = max(most, *(step.rate for step in found.steps))

        assert most <= high * truth
        assert covered >= 9

    def test_nothing_was_measured(self):
        """The interval of a search that is stopped before its first step is from 0 to infinity."""
        search = CapacitySearch(10.0, 30.0)
        search.stop("the sender was the bottleneck")

        assert search.result().interval == (0.0, np.inf)

    def test_never_missed(self):
        """If the objective is kept at the highest rate, the interval has no upper end."""
        found = search_all(CapacitySearch(10.0, 30.0), lambda _rate: np.zeros(1000, bool))

        assert found.interval == (30.0, np.inf)
        assert "the objective is kept at 30/s, the highest rate" in found.reason

    def test_always_missed(self):
        """If the objective is missed at the lowest rate, the interval begins at 0."""
        found = search_all(CapacitySearch(10.0, 30.0), lambda _rate: np.ones(1000, bool))

        assert found.interval == (0.0, 10.0)
        assert "missed at 10/s, the lowest rate" in found.reason

    def test_search_ends_when_its_steps_are_used_up(self):
        """A search that ends before it reaches its tolerance reports that it used up its steps."""
        rng = np.random.default_rng(1)
        search = CapacitySearch(50.0, 400.0, tolerance=1e-4, most_steps=5)

        found = search_all(search, lambda rate: latencies(rate, 3_000, rng, sigma=0.2) > SLO_S)

        assert found.reason == "the steps were used up"


def test_live_device(virtually, device):
    """With constant arrivals in virtual time, the capacity of a device that takes 5 ms per request is 200/s."""
    steps = []
    found = virtually(
        lambda: find_capacity(
            device(0.005),
            inputs=[1],
            slo_s=SLO_S,
            low=120.0,
            high=400.0,
            step_s=5.0,
            arrivals=Constant,
            on_step=steps.append,
        )
    )

    assert found.rate == pytest.approx(200.0, rel=0.03)
    assert [step.rate for step in steps[:2]] == pytest.approx([120.0, 150.0])


def test_step_is_long_enough(virtually, device):
    """`step_s` must be long enough for 200 requests at the lowest rate."""
    with pytest.raises(ValueError, match="step_s: expected enough seconds for 200 requests at the lowest rate"):
        virtually(lambda: find_capacity(device(0.1), inputs=[1], slo_s=1.0, low=5.0, high=10.0))


def test_step_is_not_endless(virtually, device):
    """A step of 1e300 seconds has no schedule, and the error names `step_s`."""
    with pytest.raises(ValueError, match="step_s: expected seconds > 0 and ≤ 1,000,000,000"):
        virtually(lambda: find_capacity(device(0.1), inputs=[1], slo_s=1.0, low=5.0, high=10.0, step_s=1e300))


def test_arrivals_that_end_in_the_warm_up(virtually, device):
    """If a recorded trace is too short for a step at a high rate, the result is that of the steps before."""
    options = {"inputs": [1], "slo_s": SLO_S, "low": 200.0, "high": 1e5, "step_s": 5.0}

    found = virtually(lambda: find_capacity(device(1e-6), arrivals=lambda rate: np.arange(110) / rate, **options))

    assert found.rate == 200.0
    assert found.reason == "at 250/s no request is due after the first 0.5 s"


def test_sender_that_is_the_bottleneck(virtually):
    """If the sender is the bottleneck, the search ends with the earlier steps and says how late requests were sent."""
    sent = []

    async def block(inputs):
        sent.append(inputs)
        if len(sent) > 600:  # the first step has 600 requests
            asyncio.get_running_loop().now_ns += 20_000_000  # blocks the sender

    options = {"inputs": [1], "slo_s": SLO_S, "low": 120.0, "high": 400.0, "step_s": 5.0, "arrivals": Constant}

    found = virtually(lambda: find_capacity(block, **options))

    assert [step.rate for step in found.steps] == [120.0]
    assert found.reason.startswith("at 150/s the sender was the bottleneck: at the 99th percentile requests were sent ")
    assert found.reason.endswith(" late, and 5 ms is allowed")


def test_live_options(virtually, device):
    """A search may have a single step after its ramp, and its interval has the given confidence."""
    options = {"inputs": [1], "slo_s": SLO_S, "low": 120.0, "high": 400.0, "step_s": 2.0, "arrivals": Constant}

    found = virtually(lambda: find_capacity(device(0.005), most_steps=1, confidence=0.8, tolerance=1e-3, **options))

    assert found.confidence == 0.8
    assert "80% interval" in str(found)
    assert found.reason == "the steps were used up"
    assert len(found.steps) == 5  # 120, 150, 187.5 and 234, which is too high, and one between


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"confidence": 1.0}, "confidence: expected a share"),
        ({"objective": "0.99"}, r"objective: expected a share between 0 and 1, at least 1e-9 from both, got '0\.99'"),
        ({"objective": 1.0}, "objective: expected a share"),
        ({"most_steps": 0}, "most_steps: expected a whole number"),
        ({"most_steps": 10**39}, "most_steps: expected a whole number ≥ 1 and ≤ 10000"),
        ({"seed": -1}, "seed: expected a whole number"),
        ({"high": 5.0}, "high: expected a number above low"),
        ({"high": 1e300}, r"high \* step_s: expected at most 100,000,000 arrivals"),
        ({"arrivals": Constant(100.0)}, "arrivals: expected a function of the rate"),
        ({"on_step": "print"}, "on_step: expected a function or None"),
    ],
    ids=lambda it: next(iter(it)) if isinstance(it, dict) else "",
)
def test_wrong_argument(virtually, device, wrong, message):
    """The message names the argument."""
    options = {"inputs": [1], "slo_s": SLO_S, "low": 120.0, "high": 400.0} | wrong

    with pytest.raises((TypeError, ValueError), match=message):
        virtually(lambda: find_capacity(device(0.005), **options))


def test_a_notebook_shows_a_capacity_as_text():
    """Its steps hold arrays, and its rates are no shares."""
    step = Step(2.0, np.array([1, 2]), np.array([0, 1]))
    capacity = Capacity(3.0, (1.0, math.inf), 0.95, 0.99, (step,), "a < b")

    assert capacity._repr_html_() == "<pre>capacity 3/s (1 to inf, 95% interval): a &lt; b</pre>"
