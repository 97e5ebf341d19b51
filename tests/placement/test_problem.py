"""Problems as data: their JSON, and errors that name the wrong field."""

import json

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from placement_problems import KINDS, small_problem

from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.placement import DeviceGroup, Distribution, Link, Problem, Scenario, Shard, Site


@pytest.mark.parametrize("kind", KINDS)
def test_json_round_trip(kind, tmp_path):
    """A problem is read back equal, from a text, a file or the result of ``json.loads``."""
    problem = small_problem(3, kind)
    text = problem.to_json()
    (tmp_path / "problem.json").write_text(text)

    assert Problem.from_json(text) == problem
    assert Problem.from_json(tmp_path / "problem.json") == problem
    assert Problem.from_json(str(tmp_path / "problem.json")) == problem
    assert Problem.from_json(json.loads(text)) == problem


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("sites", 0, "devices", 0, "slots"),
            -1,
            r"sites\[0\].devices\[0\].slots: expected a whole number ≥ 0, got -1",
        ),
        (("sites", 1, "name"), "s0", "sites: expected names that differ, got 's0'"),
        (("clusters", 0, "access"), "fiber", r"clusters\[0\].access: expected a known access profile, one of"),
        (("clusters", 0, "rates"), [float("nan")], r"clusters\[0\].rates: expected finite numbers ≥ 0"),
        (("clusters", 0, "residency"), "moon", r"clusters\[0\].residency: expected a known region"),
        (("service_classes", 0, "slo_s"), 0, r"service_classes\[0\].slo_s: expected a finite number of seconds > 0"),
        (
            ("service_classes", 0, "share"),
            1.0,
            r"service_classes\[0\].share: expected a share between 0 and 1",
        ),
        (("access", 0, "rtt"), [2.0, 1.0], r"access\[0\].rtt: values_s: expected seconds in ascending order"),
        (("links", "c0"), {"nowhere": {"rtt": 0.1}}, r"links\['c0'\]: expected a known site, one of"),
        (("links", "c0", "s0"), {"rtt": 0.1, "speed": 1}, r"links\['c0'\]\['s0'\]: expected keys among rtt"),
        (("failures",), "any", "failures: expected one of 'any site'"),
        (("failures",), [[]], r"failures\[0\]: expected names of sites"),
        (("failures",), 3, "failures: expected groups of sites"),
        (("sites", 0, "regions"), [1], r"sites\[0\].regions: expected a list of names"),
        (("clusters", 0, "residency"), 5, r"clusters\[0\].residency: expected a name"),
        (("models", 0, "variants", 0, "shards"), [], "shards: expected at least 1 Shard"),
        (("models", 0, "variants", 0, "shards", 0, "service_time", "cpu"), {"a": 1}, "service time: expected setup_s"),
        (("models",), {}, "models: expected a list"),
    ],
)
def test_errors_name_the_path(path, value, message):
    """The message has the path, the expectation and the value."""
    stored = json.loads(small_problem(1, "plain").to_json())
    at = stored
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value

    with pytest.raises((TypeError, ValueError), match=message):
        Problem.from_json(stored)


def test_rates_are_of_the_same_hours():
    """A cluster has one rate, or as many rates as the others."""
    first, second, *rest = small_problem(1, "plain").clusters
    clusters = [attrs.evolve(first, rates=[1.0, 2.0]), attrs.evolve(second, rates=[1.0, 2.0, 3.0]), *rest]

    with pytest.raises(ValueError, match=r"clusters\[0\].rates: expected 1 or 3 rates"):
        attrs.evolve(small_problem(1, "plain"), clusters=clusters)


def test_input_that_is_not_a_json_object_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"^problem: expected an object, got "):
        Problem.from_json("[]")
    with pytest.raises(ValueError, match=r"^source: expected JSON, got a mistake in it: Expecting"):
        Problem.from_json('{"clusters": [')
    (tmp_path / "model.onnx").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"^source: expected JSON, got a mistake in it: 'utf-8'"):
        Problem.from_json(tmp_path / "model.onnx")


def test_a_missing_key_is_named():
    """A key without a default is required."""
    with pytest.raises(ValueError, match="problem: expected the key 'clusters'"):
        Problem.from_json("{}")


@pytest.mark.parametrize("time", [ServiceTime.affine(0.01, 0.002), ServiceTime.table({1: 0.01, 8: 0.03})])
def test_service_times_are_stored(time):
    """Affine and tabulated service times are equal after a round trip through JSON."""
    problem = small_problem(1, "plain")
    variant = attrs.evolve(problem.models[0].variants[0], shards=[Shard(service_time={"cpu": time})])
    changed = attrs.evolve(problem, models=[attrs.evolve(problem.models[0], variants=[variant])])

    assert Problem.from_json(changed.to_json()) == changed


def test_service_time_by_size_is_read():
    """A mapping of sizes to seconds becomes a table."""
    stored = json.loads(small_problem(1, "plain").to_json())
    stored["models"][0]["variants"][0]["shards"][0]["service_time"]["cpu"] = {"1": 0.01, "4": 0.02}

    read = Problem.from_json(stored).models[0].variants[0].shards[0].service_time["cpu"]

    assert read == ServiceTime.table({1: 0.01, 4: 0.02})


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=400), st.integers(2, 60))
def test_distribution_is_never_below_its_samples(samples, points):
    """Quantiles of a distribution with fewer points are at least those of the samples; the largest sample stays."""
    made = Distribution.from_samples(samples, points=points)

    assert len(made.values_s) <= max(points, 2) + 1
    assert made.values_s[-1] == max(samples)
    assert made.shares.sum() == pytest.approx(1.0)
    for share in (0.1, 0.5, 0.9, 0.99):
        assert made.quantile(share) >= np.quantile(samples, share, method="inverted_cdf") - 1e-12


def test_distribution_describes_itself():
    """Text, equality and hash of a distribution follow its values."""
    one, many = Distribution.of(0.01), Distribution.of([0.01, 0.02], [0.9, 0.1])

    assert repr(one) == "<Distribution 10 ms>"
    assert repr(many) == "<Distribution of 2 values, p50 10 ms, p99 20 ms>"
    assert Link(rtt=many) == Link(rtt=Distribution.from_json(many.to_json()))
    assert hash(one) != hash(many)


@pytest.mark.parametrize(
    ("values", "shares", "error", "message"),
    [
        ([], None, ValueError, "values_s: expected finite numbers of seconds"),
        ([-1.0], None, ValueError, "values_s: expected finite numbers of seconds"),
        (["a"], None, TypeError, "values_s: expected finite numbers of seconds"),
        ([[1.0], 2.0], None, TypeError, "values_s: expected finite numbers of seconds"),
        ([1.0, 2.0], [0.5, 0.6], ValueError, "shares: expected 2 numbers > 0 with the sum 1"),
        ([1.0, 2.0], [2.0, -1.0], ValueError, "shares: expected 2 numbers > 0 with the sum 1"),
    ],
)
def test_wrong_distributions_are_rejected(values, shares, error, message):
    """Values must be seconds, and shares must add up to 1."""
    with pytest.raises(error, match=message):
        Distribution.of(values, shares)
    with pytest.raises(error, match=message):
        Distribution(values) if shares is None else Distribution(values, shares)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_quantile_rejects_a_wrong_share(share):
    with pytest.raises(ValueError, match="share: expected a share from 0 to 1"):
        Distribution.of(0.1).quantile(share)


def test_numbers_of_numpy_are_stored():
    """Rates that are NumPy numbers are equal after a round trip through JSON."""
    problem = small_problem(1, "plain")
    measured = [attrs.evolve(it, rates=np.array([3, 4])) for it in problem.clusters]
    one = attrs.evolve(measured[0], rates=np.float32(0.5))
    changed = attrs.evolve(problem, clusters=[one, *measured[1:]])

    assert Problem.from_json(changed.to_json()) == changed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda problem: attrs.evolve(problem.sites[0], regions="eu"), "regions: expected a list of names, got 'eu'"),
        (lambda problem: attrs.evolve(problem, failures=[3]), r"failures\[0\]: expected names of sites, got 3"),
        (lambda _: Scenario(name="n", access=["c0"]), "access: expected a mapping of clusters to profiles"),
    ],
    ids=["regions", "failures", "access"],
)
def test_wrong_argument_is_named(make, message):
    """A wrong argument of a constructor is named, as is a wrong field of the JSON."""
    with pytest.raises(TypeError, match=message):
        make(small_problem(1, "plain"))


def test_record_in_place_of_a_list_is_named():
    with pytest.raises(TypeError, match=r"devices: expected a list of DeviceGroups, got DeviceGroup\(kind='cpu'"):
        Site(name="lyon", devices=DeviceGroup(kind="cpu", slots=1))
