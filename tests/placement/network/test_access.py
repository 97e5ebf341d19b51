"""Access profiles are promised if other runs would show the same, and rejected otherwise."""

import pickle

import numpy as np
import pytest
from _lib.rtt_data import synthetic_car

from streaminfer.placement.distribution import Distribution
from streaminfer.placement.network.access import FittedAccess, Unpromisable, access_names, load_access
from streaminfer.placement.network.outages import SLOW_S, Outages


@pytest.fixture(scope="module")
def car():
    return synthetic_car()


def fitted(runs, name="car"):
    return FittedAccess.fit(name, [run.rtt_s for run in runs], sent_s=[run.sent_s for run in runs])


def test_runs_that_are_alike_are_promised(car):
    """A profile of half of the calm runs has the p99 of the other half within 15 %."""
    profile = fitted(car["5g-calm"][:5]).profile(0.99)
    measured = np.quantile(np.concatenate([run.rtt_s for run in car["5g-calm"][5:]]), 0.99)

    assert profile.rtt.quantile(0.99) == pytest.approx(measured, rel=0.15)


def test_runs_with_outages_are_rejected(car):
    """The tail of runs with outages is rejected; the error has the profile, a range and a promisable share."""
    with pytest.raises(
        Unpromisable, match=r"access profile .car.: p99 of .* in other runs; a share of 0\.9 can"
    ) as error:
        fitted(car["5g-outages"]).profile(0.99)
    promise = error.value.promise

    assert promise.low_s < promise.rtt_s < promise.high_s
    assert not promise.is_promisable


def test_few_runs_promise_nothing(car):
    with pytest.raises(Unpromisable, match="4 runs are fewer than 5; no share of the requests can be promised"):
        fitted(car["5g-calm"][:4]).profile(0.5)


def test_runs_weigh_by_their_messages():
    profile = FittedAccess.fit("two", [np.full(900, 0.01), np.full(100, 0.05)])

    assert profile.rtt.quantile(0.89) == 0.01
    assert profile.rtt.quantile(0.91) == 0.05
    assert profile.promise(0.5).runs == 2


def test_wider_error_promises_more():
    rng = np.random.default_rng(0)
    profile = FittedAccess.fit("spread", [rng.uniform(0.5, 1.5) * rng.exponential(0.05, 200) for _ in range(10)])

    assert not profile.promise(0.9).is_promisable
    assert profile.promise(0.9, within=2.0).is_promisable


def test_outages_are_found_and_drawn_again():
    """Two outages of known lengths are found; sampled round trips have the same share of slow ones, in stretches."""
    sent_s = np.arange(2_000) * 0.05
    rtt_s = np.full(2_000, 0.02)
    for at, count in ((500, 20), (1_500, 40)):
        rtt_s[at : at + count] += (count - np.arange(count)) * 0.05
    outages = Outages.fit([(sent_s, rtt_s)])

    drawn = outages.sample(200_000, period_s=0.05, rng=np.random.default_rng(1))
    slow = drawn > SLOW_S

    assert outages.length_s.values_s == pytest.approx([1.025, 2.025])
    assert outages.per_hour == pytest.approx(2 / 97 * 3600, rel=0.03)
    assert outages.share_of_time == pytest.approx(0.03, rel=0.05)
    assert slow.mean() == pytest.approx((rtt_s > SLOW_S).mean(), rel=0.25)
    assert np.corrcoef(slow[:-1], slow[1:])[0, 1] > 0.9


@pytest.mark.parametrize("period_s", [0.01, 0.05, 0.1])
def test_drawn_outages_are_fitted_again(period_s):
    """Outages that are fitted to samples have the mean length and the share of time of the originals, at any period."""
    known = Outages(
        per_hour=300.0, length_s=Distribution.of([0.3, 0.4, 0.6]), calm_s=Distribution.of([0.06, 0.07, 0.08])
    )
    rtt_s = known.sample(200_000, period_s=period_s, rng=np.random.default_rng(2))

    found = Outages.fit([(np.arange(rtt_s.size) * period_s, rtt_s)])

    assert found.length_s.values_s @ found.length_s.shares == pytest.approx(0.4333, rel=0.03)
    assert found.share_of_time == pytest.approx(known.share_of_time, rel=0.15)  # from at least 150 outages


def test_back_to_back_outages_are_two():
    """A delay that rises again within a stretch starts another outage, which ends the one before."""
    sent_s = np.arange(40) * 0.05
    rtt_s = np.full(40, 0.02)
    rtt_s[5:15] = 0.6 - 0.05 * np.arange(10)
    rtt_s[15:25] = 0.6 - 0.05 * np.arange(10)

    assert Outages.fit([(sent_s, rtt_s)]).length_s.values_s == pytest.approx([0.5, 0.605])


@pytest.mark.parametrize("rtt_s", [np.full(50, 0.02), np.full(50, 2.0)], ids=["calm", "only outage"])
def test_uniform_runs_have_no_outages(rtt_s):
    assert Outages.fit([(np.arange(50) * 0.05, rtt_s)]) is None


def test_packaged_profiles_know_their_source():
    names = access_names()

    assert {"wired", "personal", "5g-private-rural", "5g-public-urban"} <= set(names)
    for name in names:
        profile = load_access(name)
        assert "changed:" in profile.source
        assert (profile.outages is not None) == name.startswith("5g")


def test_packaged_5g_tells_city_from_country():
    """The city's p99 is promised; the country's p99 is rejected, and its share of time in outages is known."""
    assert load_access("5g-public-urban").profile(0.99).rtt.quantile(0.99) < 0.035
    rural = load_access("5g-private-rural")
    with pytest.raises(Unpromisable) as raised:
        rural.profile(0.99)
    copied = pickle.loads(pickle.dumps(raised.value))  # as from another process that plans
    assert (str(copied), copied.promise) == (str(raised.value), raised.value.promise)
    assert rural.outages.share_of_time == pytest.approx(0.25, abs=0.01)  # its slow messages were sent in this share


def test_json_round_trip(car):
    profile = fitted(car["5g-outages"])

    assert FittedAccess.from_json(profile.to_json()) == profile


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FittedAccess.fit("", [[0.1]]), None),
        (lambda: FittedAccess.fit("x", []), "runs_s: expected at least one run"),
        (lambda: FittedAccess.fit("x", [[0.1, 0.2]], sent_s=[[1.0, 0.0]]), r"sent_s\[0\]: expected 2 ascending"),
        (lambda: FittedAccess.fit("x", [[0.1, 0.2]], sent_s=[[1.0, np.nan]]), r"sent_s\[0\]: expected 2 ascending"),
        (lambda: FittedAccess.fit("x", [[0.1, 0.2]], sent_s=[[1.0, np.inf]]), r"sent_s\[0\]: expected 2 ascending"),
        (
            lambda: FittedAccess.fit("x", [[0.1], [0.2]], sent_s=[[1.0]]),
            "sent_s: expected instants of each of the 2 runs",
        ),
        (lambda: load_access("6g"), "name: expected one of 'wired'"),
        (lambda: FittedAccess.fit("x", [[0.1]]).promise(0.0), "share: expected"),
    ],
    ids=["name", "runs", "sent", "sent nan", "sent infinite", "sent runs", "load", "share"],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    "changed",
    [{"per_hour": 0.0}, {"per_hour": np.nan}, {"per_hour": np.inf}, {"length_s": 0.3}, {"calm_s": [0.02]}],
    ids=["no rate", "rate nan", "rate infinite", "length", "calm"],
)
def test_outages_of_wrong_fields_are_named(changed):
    fields = {"per_hour": 60.0, "length_s": Distribution.of(0.3), "calm_s": Distribution.of(0.02)}

    with pytest.raises((ValueError, TypeError), match=f"{next(iter(changed))}: expected"):
        Outages(**{**fields, **changed})


def test_runs_of_an_array():
    """Runs of equal length may be the rows of an array; an empty array has no runs and is rejected."""
    runs = np.random.default_rng(0).uniform(0.01, 0.02, (6, 100))

    assert FittedAccess.fit("home", runs).messages == (100,) * 6
    with pytest.raises(ValueError, match="runs_s: expected at least one run"):
        FittedAccess.fit("home", runs[:0])
