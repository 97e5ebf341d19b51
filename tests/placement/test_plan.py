"""Plans, prices, repairs and their check by simulation."""

import itertools
import pickle

import attrs
import numpy as np
import pytest
from placement_problems import KINDS, BruteForce, small_problem

from streaminfer.placement import (
    Distribution,
    InfeasiblePlacement,
    Link,
    Scenario,
    plan,
    plan_hours,
    prices,
    repair,
    replay,
)
from streaminfer.placement.predictions import _busiest
from streaminfer.placement.solver.candidates import find_candidates
from streaminfer.placement.solver.greedy import _cheapest, complete, lower_bound
from streaminfer.placement.solver.instance import Instance
from streaminfer.placement.solver.program import solve


def planned(kind, **options):
    """Return the first problem of a kind that has a plan, and the plan."""
    for seed in range(40):
        problem = small_problem(seed, kind)
        try:
            return problem, plan(problem, gap=0.0, **options)
        except InfeasiblePlacement:
            continue
    raise AssertionError(kind)


def test_plan_can_be_pickled():
    """A pickled plan has the same predictions, and can be repaired in another process."""
    problem, found = planned("plain")

    restored = pickle.loads(pickle.dumps(found))

    assert repr(restored) == repr(found)
    assert restored.predictions == found.predictions
    lost = [problem.sites[0].name]
    assert repair(restored, lost).running == repair(found, lost).running


@pytest.mark.parametrize("kind", KINDS)
def test_plan_serves_all_clusters_as_promised(kind):
    """The shares of a cluster add up to 1, groups stay below their rate, and predictions are within the SLO."""
    problem, found = planned(kind)

    factors = {it.name: it.rate_factor for it in problem.scenarios}
    for (hour, scenario), assignment in found.assignments.items():
        loads = np.zeros(len(found.replicas))
        for cluster in problem.clusters:
            assert sum(assignment[cluster.name].values()) == pytest.approx(1.0)
            for group, share in assignment[cluster.name].items():
                loads[group] += factors[scenario] * cluster.rates[hour % len(cluster.rates)] * share
        for group, load in zip(found.replicas, loads, strict=True):
            assert load <= group.replicas * group.max_rate * (1 + 1e-5)
    assert all(it.latency_s <= it.slo_s * 1.001 for it in found.predictions.values())
    assert found.unserved == {}
    assert found.gap == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("method", ["exact", "greedy"])
def test_of_equally_fast_variants_the_best_runs(method):
    """Of variants that differ only in their quality, the best one runs, and the cost stays about the same."""
    problem, expected = planned("plain")
    (model,) = problem.models
    variants = [attrs.evolve(model.variants[0], name=f"q{quality}", quality=quality) for quality in (1.0, 3.0, 2.0)]

    found = plan(attrs.evolve(problem, models=[attrs.evolve(model, variants=variants)]), gap=0.0, method=method)

    assert {group.variant for group in found.replicas} == {"q3.0"}
    assert found.cost == pytest.approx(expected.cost, rel=0.2 if method == "greedy" else 1e-6)


@pytest.mark.parametrize("kind", ["plain", "shards", "classes", "scenarios"])
def test_simulation_agrees_with_prediction(kind):
    """Predictions are above 90 % of the simulated latencies, three of four are within 10 %, and promises are kept."""
    _, found = planned(kind)

    check = replay(found)

    assert all(it.ratio > 0.9 for it in check.clusters.values())
    assert check.within >= 0.75
    assert all(it.on_time >= it.prediction.share - 0.005 for it in check.clusters.values())


def test_simulation_counts_unserved_clusters():
    """Clusters without capacity are unserved, and count as broken promises."""
    problem, found = planned("plain")

    check = replay(repair(found, [it.name for it in problem.sites]), requests=100)

    assert check.unserved == tuple(it.name for it in problem.clusters)
    assert check.kept == 0.0
    assert f"{len(problem.clusters)} unserved" in repr(check)


def test_simulation_finds_weak_spots():
    """Clusters whose demand has tripled since the plan are weak spots."""
    problem, found = planned("plain")
    busy = [attrs.evolve(it, rates=[3 * rate for rate in it.rates]) for it in problem.clusters]

    check = replay(attrs.evolve(found, problem=attrs.evolve(problem, clusters=busy)), requests=1000)

    assert len(check.weak_spots) == len(busy)
    assert "weak" in repr(check)
    assert "<table>" in check._repr_html_()


def test_hour_of_another_plan_is_named():
    _, found = planned("plain")

    with pytest.raises(ValueError, match=r"hour, scenario: expected one of \[\(0, 'normal'\)\], got \(1, 'normal'\)"):
        found.group_rates(1, "normal")


def test_round_trip_beyond_all_slos_is_late():
    """A round trip that means "never" may have any size."""
    problem, expected = planned("plain")
    lost = Distribution.of([0.0, 1e300], [0.999, 0.001])
    access = [attrs.evolve(it, rtt=lost) for it in problem.access]

    found = plan(attrs.evolve(problem, access=access), gap=0.0)

    assert found.cost <= expected.cost
    assert found.predictions


def test_number_in_place_of_lost_sites_is_named():
    with pytest.raises(TypeError, match="lost: expected names of sites, got 1"):
        repair(plan(small_problem(1, "quality")), 1)


def test_repair_serves_all_clusters_without_lost_sites():
    """The repair of a plan that survives failures serves all clusters, and runs nothing at the lost site."""
    _, found = planned("failures")
    lost = found.sites[0]

    repaired = repair(found, [lost])

    assert lost not in repaired.sites
    assert repaired.unserved == {}


def test_repair_starts_no_unneeded_replica():
    """Repair starts no replica for a cluster that is cheap to serve if a replica for all others has room for it."""
    (problem, _), near = planned("plain"), Link(rtt=Distribution.of(0.002))
    few, many = (
        attrs.evolve(problem.clusters[0], name=name, rates=rate) for name, rate in (("few", 10), ("many", 200))
    )
    prices = {"lost": 0.01, "cheap": 0.01, "dear": 1.0}
    sites = [
        attrs.evolve(problem.sites[0], name=name, devices=[attrs.evolve(problem.sites[0].devices[0], price=price)])
        for name, price in prices.items()
    ]
    links = {"few": dict.fromkeys(prices, near), "many": {"lost": near, "dear": near}}
    running = plan(attrs.evolve(problem, clusters=[few, many], sites=sites, links=links, site_links={}))

    repaired = repair(running, ["lost"])

    assert [(group.sites, group.replicas) for group in repaired.replicas] == [(("dear",), 1)]


@pytest.mark.parametrize(
    ("kind", "seed", "lost"), [("plain", 32, 0), ("memory", 30, 1), ("classes", 59, 1), ("site_prices", 13, 1)]
)
def test_repair_serves_all_that_can_be(kind, seed, lost):
    """If not all demand can be served, repair serves the most possible, by brute force; the simulation agrees."""
    problem = small_problem(seed, kind)
    candidates = find_candidates(problem)
    brute = BruteForce(candidates, candidates.allowed & ~candidates.uses[lost])
    mask, demand = brute.allowed[0][:, brute.columns], candidates.rates[0]

    repaired = repair(plan(problem, gap=0.0), [problem.sites[lost].name])

    most = brute._largest_flow(brute.counts(), mask, demand).max()
    assert 0 < most < demand.sum()
    assert demand.sum() - sum(repaired.unserved.values()) == pytest.approx(most, rel=1e-4)
    assert all(it.ratio > 0.9 for it in replay(repaired, requests=2000).clusters.values())


def test_repair_in_too_little_time_is_greedy(monkeypatch):
    """If its time is too short, repair still serves what the greedy choice can serve."""
    problem = small_problem(32, "plain")
    monkeypatch.setattr("streaminfer.placement.planning._SERVED_S", 1e-9)

    repaired = repair(plan(problem, gap=0.0), ["s0"])

    assert 0 < sum(repaired.unserved.values()) < sum(cluster.rates[0] for cluster in problem.clusters) / 2


def test_repair_names_clusters_without_capacity():
    """A repaired plan names each cluster without capacity, with its rate."""
    problem, found = planned("plain")

    repaired = repair(found, [site.name for site in problem.sites])

    assert repaired.replicas == ()
    assert "gap" not in repr(repaired)  # no plan serves more
    assert repaired.unserved == pytest.approx({it.name: it.rates[0] for it in problem.clusters}, rel=1e-5)


@pytest.mark.parametrize("kind", ["plain", "site_prices", "hours", "failures"])
def test_greedy_is_between_bound_and_limit(kind):
    """The greedy plan serves all clusters at 1 to 1.5 times the cost of the exact plan, which is at least the bound."""
    problem, exact = planned(kind)
    instance = Instance(find_candidates(problem))

    greedy = plan(problem, method="greedy")

    assert greedy.unserved == {}
    assert lower_bound(instance) <= exact.cost * (1 + 1e-9)
    assert exact.cost <= greedy.cost * (1 + 1e-9)
    assert greedy.cost <= 1.5 * exact.cost


@pytest.mark.parametrize("kind", ["plain", "failures"])
def test_completion_keeps_running_replicas(kind):
    """Completion keeps a replica that it would not choose, adds replicas for all demand, and then changes nothing."""
    _, found = planned(kind)
    instance, none = found.instance, np.zeros_like(found.counts)
    running = none.copy()
    running[np.flatnonzero(complete(instance, none) == 0)[0]] = 1

    completed = complete(instance, running)

    assert (completed >= running).all()
    for state in range(len(instance.flows.rates)):
        flow = instance.flows.empty()
        instance.flows.extend(state, completed, flow)
        assert not instance.flows.unserved(state, flow).any()
    assert (complete(instance, completed) == completed).all()


def test_migrations_are_limited():
    """With 0 migrations, the plan is the running one, or there is no plan."""
    problem, running = planned("plain")

    same = plan(problem, running=running, migrations=0)

    assert same.running == running.running
    with pytest.raises(InfeasiblePlacement, match="at most 0 started replicas"):
        plan(
            attrs.evolve(problem, clusters=[attrs.evolve(it, rates=it.rates[0] * 1.4) for it in problem.clusters]),
            running=running,
            migrations=0,
        )


def test_running_replicas_are_matched_by_site_name():
    """Running replicas are found by the names of sites, even if the order of sites differs and one site is new."""
    problem, running = planned("plain")
    new = attrs.evolve(problem.sites[0], name="new")
    moved = attrs.evolve(problem, sites=[new, *reversed(problem.sites)])

    assert plan(moved, running=running, migrations=0).running == running.running


def test_an_hour_given_twice_counts_once():
    """Loads are those of the given hour, whatever hours the plan was made for."""
    problem, _ = planned("hours")

    once, twice = (plan(problem, hours=hours) for hours in ([0, 1], [0, 0, 1]))

    assert twice.group_rates(1, "normal").tolist() == once.group_rates(1, "normal").tolist()


def test_plan_hours_follows_the_demand():
    """Each hour costs no more than the plan for all hours."""
    problem, whole = planned("hours")

    plans = plan_hours(problem)

    assert len(plans) == problem.hours
    assert all(it.cost <= whole.cost * 1.001 for it in plans)


def test_prices_use_gap_and_time_limit(monkeypatch):
    """Each solution of a price table has the given gap and time limit."""
    _, found = planned("plain")
    seen = []

    def noted(instance, **limits):
        seen.append(limits)
        return solve(instance, **limits)

    monkeypatch.setattr("streaminfer.placement.price_table.solve", noted)

    prices(found, gap=0.01, time_limit_s=60.0)

    assert len(seen) > 1
    assert all(limits == {"gap": 0.01, "time_limit_s": 60.0} for limits in seen)


@pytest.mark.parametrize("search", [plan, plan_hours], ids=["plan", "plan_hours"])
def test_no_plan_in_time(search):
    """If no plan is found in time, the error is a `TimeoutError`, because this is no proof that there is none."""
    with pytest.raises(TimeoutError, match="no plan was found within time_limit_s"):
        search(small_problem(1, "plain"), time_limit_s=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gap": -1}, "gap: expected"),
        ({"migrations": "x"}, "migrations: expected"),
        ({"time_limit_s": 0}, "time_limit_s"),
    ],
    ids=["gap", "migrations", "time"],
)
def test_plan_hours_names_wrong_arguments(options, message):
    """A wrong argument is named, even if the problem has one hour."""
    with pytest.raises((TypeError, ValueError), match=message):
        plan_hours(small_problem(1, "plain"), **options)


def test_prices_are_savings():
    """The price of failures is the saving of a plan that survives none."""
    problem, found = planned("failures")

    table = prices(found)

    saving = next(it.saving for it in table.prices if it.change == "no failure is survived")
    assert saving == pytest.approx(found.cost - plan(attrs.evolve(problem, failures=()), gap=0.0).cost, rel=1e-3)
    assert "no failure" in repr(table)
    assert "<table>" in table._repr_html_()


def test_prices_after_repair_ignore_lost_sites():
    """Prices after a repair are those of the problem without the lost site, and without failures to survive."""
    problem, found = planned("failures")
    lost = found.sites[0]
    links = {start: {site: link for site, link in row.items() if site != lost} for start, row in problem.links.items()}
    without = attrs.evolve(problem, links=links, failures=())

    tables = [prices(one, gap=0.0) for one in (repair(found, [lost]), plan(without, gap=0.0))]

    savings, expected = ({it.change: it.saving for it in table.prices} for table in tables)
    assert savings == pytest.approx(expected)


def test_relaxations_make_a_plan_possible():
    """Each change that the error names is enough, and one slot fewer is not."""
    problem = small_problem(1, "plain")
    users = attrs.evolve(problem.clusters[0], rates=2000.0)
    link = {"s0": Link(rtt=Distribution.of(0.01))}
    crowded = attrs.evolve(problem, clusters=[users], links={users.name: link})

    with pytest.raises(InfeasiblePlacement, match="it would help to add") as raised:
        plan(crowded)

    added = [it for it in raised.value.relaxations if it.constraint.kind == "slots"]
    assert added
    for it in added:
        name, _ = it.constraint.subject
        assert plan(with_slots(crowded, name, round(it.amount))).unserved == {}
        with pytest.raises(InfeasiblePlacement):
            plan(with_slots(crowded, name, round(it.amount) - 1))


def with_slots(problem, name, more):
    return attrs.evolve(
        problem,
        sites=[
            attrs.evolve(
                it, devices=[attrs.evolve(one, slots=one.slots + more * (it.name == name)) for one in it.devices]
            )
            for it in problem.sites
        ],
    )


def test_plan_is_shown():
    """The text of a plan names replicas, and its table names clusters."""
    _, found = planned("site_prices")

    assert "replicas at" in repr(found)
    assert "c0" in found._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "method: expected one of"),
        ({"gap": -1}, "gap: expected"),
        ({"hours": [5]}, "hours: expected"),
        ({"hours": []}, "hours: expected at least one"),
        ({"hours": 0}, "hours: expected whole numbers"),
        ({"running": "x"}, "running: expected a Plan"),
        ({"migrations": -1}, "migrations: expected"),
        ({"budget": "much"}, "budget: expected"),
        ({"budget": 3.0, "method": "greedy"}, "method: expected 'exact'"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    """The message names the argument and the expectation."""
    with pytest.raises((TypeError, ValueError), match=message):
        plan(small_problem(1, "plain"), **options)


@pytest.mark.parametrize("rate", [1e-9, 1e-3])
def test_rare_requests_are_served(rate):
    """A cluster gets a replica however few requests it sends, and its simulation has as many requests as any other."""
    problem = small_problem(0, "plain")
    rare = [attrs.evolve(problem.clusters[0], rates=[rate])]

    found = plan(attrs.evolve(problem, clusters=rare, links={"c0": problem.links["c0"]}))

    assert list(found.assignment) == ["c0"]
    assert replay(found, requests=100).kept == 1.0


@pytest.mark.parametrize("options", [{}, {"budget": 1.0}, {"method": "greedy"}], ids=str)
def test_without_requests_and_links_nothing_runs(options):
    """A problem without requests needs no replica and no links."""
    problem = small_problem(0, "plain")
    silent = [attrs.evolve(it, rates=[0.0]) for it in problem.clusters]

    found = plan(attrs.evolve(problem, clusters=silent, links={}), **options)

    assert (found.replicas, found.cost, found.binding) == ((), 0.0, ())


def test_demand_of_the_planned_hours_is_named():
    """The error has the rates of the planned hours and scenarios, and not those of others."""
    problem = small_problem(0, "plain")
    busy = [attrs.evolve(problem.clusters[0], rates=[9e9, 1e9])]
    doubled = [Scenario(name="doubled", rate_factor=2.0)]

    with pytest.raises(InfeasiblePlacement, match=r"is served, up to 2e\+09 requests"):
        plan(attrs.evolve(problem, clusters=busy, links={"c0": problem.links["c0"]}, scenarios=doubled), hours=[1])


@pytest.mark.parametrize("rate", [1e6, 1e12])
def test_enormous_demand_is_explained(monkeypatch, rate):
    """The explanation of why there is no plan takes a few hundred steps, however many replicas the demand needs."""
    problem = small_problem(0, "plain")
    busy = [attrs.evolve(problem.clusters[0], rates=[rate])]
    steps = itertools.count(1)

    def counted(*args):
        assert next(steps) <= 500
        return _cheapest(*args)

    monkeypatch.setattr("streaminfer.placement.solver.greedy._cheapest", counted)

    with pytest.raises(InfeasiblePlacement, match="is served"):
        plan(attrs.evolve(problem, clusters=busy, links={"c0": problem.links["c0"]}))


def test_sites_without_slots_are_explained():
    """A problem without slots has no plan, and the error says that slots would help."""
    problem = small_problem(0, "plain")
    full = [attrs.evolve(it, devices=[attrs.evolve(group, slots=0) for group in it.devices]) for it in problem.sites]
    alone = attrs.evolve(problem, sites=full, clusters=problem.clusters[:1], links={"c0": problem.links["c0"]})

    with pytest.raises(InfeasiblePlacement, match=r"0 slots of 'cpu' at site .* it would help to add 2 slots"):
        plan(alone)


def test_a_slot_at_a_site_without_any_has_its_price():
    """A slot at a site without slots has a price if it saves cost, and the bound of a greedy plan ignores the site."""
    problem, found = planned("plain")
    name = found.sites[0]
    without = attrs.evolve(
        problem,
        sites=[
            attrs.evolve(it, name="full", devices=[attrs.evolve(group, slots=0, price=0.01) for group in it.devices])
            for it in problem.sites
            if it.name == name
        ]
        + list(problem.sites),
        links={start: row | ({"full": row[name]} if name in row else {}) for start, row in problem.links.items()},
    )

    table, greedy = prices(plan(without, gap=0.0)), plan(without, method="greedy")

    assert any(it.change.endswith("at site 'full'") and it.saving > 0 for it in table.prices)
    assert greedy.bound == plan(problem, method="greedy").bound


def test_repair_rejects_a_text_as_names():
    """A text is not a list of names."""
    _, found = planned("plain")

    with pytest.raises(TypeError, match="lost: expected"):
        repair(found, "s0")


def test_busiest_hours_keep_order_of_scenarios():
    """Of equally loaded scenarios the first one comes first, in every process."""
    loads = {(0, name): 0.5 for name in "abcdefgh"}

    assert list(_busiest(loads)) == list(loads)
