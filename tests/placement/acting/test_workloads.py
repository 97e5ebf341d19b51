"""Workloads of a plan: the same replicas at the same sites, for the same users."""

import attrs
import kubernetes_validate
import pytest
import yaml

import streaminfer as si
from streaminfer.placement import (
    Distribution,
    Link,
    Model,
    Scenario,
    Variant,
    envoy_policies,
    keda_scaled_objects,
    kubernetes_manifests,
    plan,
    plan_replicas,
    plan_workloads,
    ray_options,
    site_shares,
)
from streaminfer.testing import ScriptedBackend


def test_workloads_cover_all_replicas(answer):
    found = plan_workloads(answer)

    assert sum(it.replicas for it in found) == sum(group.replicas for group in answer.replicas)
    assert {(it.site, it.device, it.memory_bytes) for it in found} == {("east", "cpu", 2e9), ("west", "cpu", 2e9)}
    for it in found:
        assert it.rate > 0


def test_load_levels_share_one_workload(answer):
    """Replicas that are planned for different loads share one workload, which has their mean rate."""
    first = answer.replicas[0]
    split = attrs.evolve(answer, replicas=(*answer.replicas, attrs.evolve(first, replicas=1, max_rate=1.0)))

    found = {it.site: it for it in plan_workloads(split)}

    assert len(found) == 2
    assert found[first.sites[0]].replicas == first.replicas + 1
    total = first.replicas * first.max_rate + 1.0
    assert found[first.sites[0]].rate == pytest.approx(total / (first.replicas + 1))


def test_shares_go_where_the_promise_holds(answer):
    shares = site_shares(answer)

    assert shares == {"lyon": {"east": pytest.approx(1.0)}, "paris": {"west": pytest.approx(1.0)}}
    assert site_shares(answer, hour=0).keys() == shares.keys()
    with pytest.raises(TypeError, match="hour: expected one of 0, 1, got 7"):
        site_shares(answer, hour=7)


def test_manifests_have_every_replica(answer):
    text = kubernetes_manifests(answer, images={"detector": "d:1"}, resources={"cpu": {"cpu": 1}})
    found = list(yaml.safe_load_all(text))

    for document in found:
        kubernetes_validate.validate(document, "1.35", strict=True)
    planned = sum(it["spec"]["replicas"] for it in found if it["kind"] == "Deployment")
    assert planned == sum(group.replicas for group in answer.replicas)


def test_manifests_of_one_site(answer):
    text = kubernetes_manifests(answer, images={"detector": "d:1"}, resources={"cpu": {"cpu": 1}}, site="west")

    assert [it["kind"] for it in yaml.safe_load_all(text)] == ["Deployment", "Service"]
    assert "east" not in text
    with pytest.raises(ValueError, match="site: expected one of 'east', 'west', got 'north'"):
        kubernetes_manifests(answer, images={"detector": "d:1"}, resources={"cpu": {"cpu": 1}}, site="north")


def test_policies_of_all_clusters(answer):
    found = list(yaml.safe_load_all(envoy_policies(answer, zones={"east": "zone-a"})))

    zones = [it["spec"]["loadBalancer"]["zoneAware"]["weightedZones"] for it in found]
    assert zones == [[{"zone": "zone-a", "weight": 1000}], [{"zone": "west", "weight": 1000}]]


def test_cluster_idle_in_the_busiest_hour_has_a_route(problem):
    """A cluster that is idle in the busiest hour has the shares of its own busiest hour."""
    lyon, paris = problem.clusters
    answer = plan(attrs.evolve(problem, clusters=[lyon, attrs.evolve(paris, rates=(150.0, 0.0))]))

    assert "paris" not in answer.assignment
    assert site_shares(answer) == {"lyon": {"east": 1.0}, "paris": {"west": 1.0}}
    assert len(list(yaml.safe_load_all(envoy_policies(answer)))) == 2
    assert plan_replicas(answer, "paris", {"west": si.Stack(ScriptedBackend())}).zone == "west"
    with pytest.raises(ValueError, match="cluster: expected one of 'lyon', got 'paris'"):
        plan_replicas(answer, "paris", {}, hour=1)


def test_shares_are_those_of_the_first_scenario(problem):
    """Shares are those of the usual scenario; those of a busier one on a faster network would make requests late."""
    lyon, (fiber,), (east, west) = problem.clusters[0], problem.access, problem.sites
    answer = plan(
        attrs.evolve(
            problem,
            clusters=[attrs.evolve(lyon, rates=(20.0, 150.0))],
            service_classes=[attrs.evolve(problem.service_classes[0], slo_s=0.08)],
            sites=[attrs.evolve(east, devices=[attrs.evolve(east.devices[0], slots=1)]), west],
            access=[attrs.evolve(fiber, rtt=Distribution.of(0.03)), attrs.evolve(fiber, name="faster")],
            links={
                "lyon": {site: Link(rtt=Distribution.of(rtt_s)) for site, rtt_s in (("east", 0.008), ("west", 0.05))}
            },
            scenarios=[Scenario(name="usual"), Scenario(name="office", access={"lyon": "faster"}, rate_factor=4.0)],
        )
    )

    assert len(answer.shares_by_site(answer.assignments[1, "office"])["lyon"]) == 2
    assert site_shares(answer) == site_shares(answer, hour=1) == {"lyon": {"east": 1.0}}


def test_zone_weights_follow_the_shares(plan_of):
    (policy,) = yaml.safe_load_all(envoy_policies(plan_of({"eu-lyon": 0.7, "eu-paris": 0.3, "us": 0.0})))

    assert policy["kind"] == "BackendTrafficPolicy"
    assert policy["spec"]["targetRefs"][0]["name"] == policy["metadata"]["name"]
    assert policy["spec"]["loadBalancer"]["zoneAware"]["weightedZones"] == [
        {"zone": "eu-lyon", "weight": 700},
        {"zone": "eu-paris", "weight": 300},
    ]


def test_sites_of_one_zone_share_its_weight(plan_of):
    """Sites in the same zone share a weight, because Envoy Gateway accepts each zone once."""
    text = envoy_policies(plan_of({"a": 0.5, "b": 0.2, "c": 0.3}), zones={"a": "z", "b": "z"})
    (policy,) = yaml.safe_load_all(text)

    assert policy["spec"]["loadBalancer"]["zoneAware"]["weightedZones"] == [
        {"zone": "z", "weight": 700},
        {"zone": "c", "weight": 300},
    ]


def test_scaling_covers_the_hours(hourly):
    """A workload scales from the replicas of the quiet hour to those of the busy hour plus the spare ones."""
    quiet, busy = ({it.site: it.replicas for it in plan_workloads(one)} for one in hourly)
    found = {it["metadata"]["name"]: it["spec"] for it in yaml.safe_load_all(
        keda_scaled_objects(*hourly, prometheus="http://p:9090", spare=1))}  # fmt: skip

    east = next(spec for name, spec in found.items() if "east" in name)
    assert quiet["east"] < busy["east"]
    assert (east["minReplicaCount"], east["maxReplicaCount"]) == (quiet["east"], busy["east"] + 1)


@pytest.mark.parametrize("hours", [(0, 1), (1, 0)])
def test_scaling_counts_on_the_least_rate(hourly, hours):
    """The threshold is the least rate of all hours, because a replica keeps its promises up to the rate of its plan."""
    strict = attrs.evolve(hourly[0], replicas=[attrs.evolve(it, max_rate=7.0) for it in hourly[0].replicas])
    plans = [(strict, hourly[1])[hour] for hour in hours]

    found = list(yaml.safe_load_all(keda_scaled_objects(*plans, prometheus="http://p:9090")))

    assert {it["spec"]["triggers"][0]["metadata"]["threshold"] for it in found} == {"7"}


@pytest.mark.parametrize("make", [plan_workloads, site_shares, envoy_policies])
def test_value_that_is_not_a_plan_is_named(hourly, make):
    with pytest.raises(TypeError, match="plan: expected a Plan, got"):
        make(hourly)


def test_negative_spare_is_rejected(answer):
    with pytest.raises(ValueError, match="spare: expected a whole number ≥ 0, got -1"):
        keda_scaled_objects(answer, prometheus="http://p:9090", spare=-1)


@pytest.mark.parametrize("name", ["prometheus", "query"])
def test_wrong_texts_of_scaling_are_named(answer, name):
    with pytest.raises(TypeError, match=f"{name}: expected a text that is not empty, got 5"):
        keda_scaled_objects(answer, **{"prometheus": "http://p:9090", name: 5})


def test_scaling_needs_a_plan():
    """Scaling without any plan is an error, because an empty manifest would look correct."""
    with pytest.raises(TypeError, match="plans: expected at least one Plan"):
        keda_scaled_objects(prometheus="http://p:9090")


def test_workload_of_busy_hours_scales_to_zero(hourly):
    """A workload that does not run in every hour scales to zero."""
    without = attrs.evolve(hourly[0], replicas=tuple(it for it in hourly[0].replicas if it.sites != ("west",)))
    found = list(yaml.safe_load_all(keda_scaled_objects(without, hourly[1], prometheus="http://p:9090")))

    assert {it["metadata"]["name"].split("-")[-2]: it["spec"]["minReplicaCount"] for it in found}["west"] == 0


def test_ray_has_a_deployment_for_each_workload(answer):
    options = ray_options(answer, resources={"cpu": {"num_cpus": 2}})

    assert {name: it["num_replicas"] for name, it in options.items()} == {
        it.name: it.replicas for it in plan_workloads(answer)
    }


async def test_replicas_follow_the_plan(loop, answer):
    def stack():
        return si.Stack(si.AdaptiveBatcher(max_batch_size=4, policy="greedy"), ScriptedBackend(duration_s=0.01))

    replicas = plan_replicas(answer, "lyon", {"east": stack(), "west": stack()}, seed=1)
    async with si.Stack(replicas, clock=loop.clock) as service:
        for _ in range(50):
            await service(1.0)

    assert replicas.zone == "east"
    assert replicas.statistics()["east 1"].attempts == 50


def test_unknown_cluster_is_named(answer):
    with pytest.raises(ValueError, match="cluster: expected one of 'lyon', 'paris', got 'nice'"):
        plan_replicas(answer, "nice", {})


def test_workloads_with_the_same_name_are_rejected(problem):
    """Workloads with the same name are rejected, because a platform would keep only one of them."""
    shards = problem.models[0].variants[0].shards
    models = [
        Model(name=name, variants=[Variant(name=variant, shards=shards)])
        for name, variant in (("face", "small-int8"), ("face-small", "int8"))
    ]
    clusters = [
        attrs.evolve(cluster, model=model.name, rates=(20.0,))
        for cluster, model in zip(problem.clusters, models, strict=True)
    ]
    near = {name: {"east": Link(rtt=Distribution.of(0.008))} for name in ("lyon", "paris")}

    with pytest.raises(ValueError, match="plan: expected names that differ, got 'face-small-int8-east-cpu'"):
        plan_workloads(plan(attrs.evolve(problem, models=models, clusters=clusters, links=near)))
