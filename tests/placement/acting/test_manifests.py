"""Manifests, which the platforms accept and which have the values of the plan."""

import re

import attrs
import kubernetes_validate
import numpy as np
import pytest
import yaml

from streaminfer.placement import Workload, envoy_policies, keda_scaled_objects, kubernetes_manifests
from streaminfer.placement import ray_options as options_of
from streaminfer.placement.acting import kubernetes, ray_options, traffic
from streaminfer.placement.acting.workloads import platform_name

PARIS = Workload(
    model="Detector", variant="int8", shard=0, site="eu-paris", device="a10", replicas=2, rate=120.0, slots=1.0,
    memory_bytes=2.0e9,
)  # fmt: skip
LYON = attrs.evolve(PARIS, site="eu-lyon", device="cpu", replicas=3, slots=0.5)
RESOURCES = {"a10": {"nvidia.com/gpu": 1}, "cpu": {"cpu": 1}}


@pytest.fixture(autouse=True)
def plans_are_their_workloads(monkeypatch):
    """Let tests pass workloads as a plan, because the text of a workload does not depend on the rest of its plan."""
    for module in (kubernetes, ray_options, traffic):
        monkeypatch.setattr(module, "plan_workloads", lambda workloads: workloads)


def manifests(*workloads, **changes):
    given = {"images": {"Detector": "registry/detector:1"}, "resources": RESOURCES, "zones": None, "port": 8000}
    return list(yaml.safe_load_all(kubernetes_manifests(workloads, namespace="vision", **given | changes)))


@pytest.mark.parametrize("version", ["1.33", "1.35"])
def test_kubernetes_accepts_the_manifests(version):
    """Every document passes the strict schema of its Kubernetes version."""
    found = manifests(PARIS, LYON, attrs.evolve(PARIS, shard=1))

    assert [it["kind"] for it in found] == ["Deployment"] * 3 + ["Service"] * 2
    for document in found:
        kubernetes_validate.validate(document, version, strict=True)


def test_schema_check_would_find_mistakes():
    document = manifests(PARIS)[0]
    document["spec"]["template"]["spec"]["containers"][0]["readinessProbes"] = {}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.35", strict=True)


def test_deployment_stays_in_its_zone():
    """A Deployment has the replicas, zone, image and resources of its workload, and spreads its pods over hosts."""
    document = manifests(PARIS, zones={"eu-paris": "eu-west-3a"})[0]
    pod = document["spec"]["template"]["spec"]
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]

    assert document["spec"]["replicas"] == 2
    assert term["matchExpressions"] == [
        {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["eu-west-3a"]}
    ]
    assert pod["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"
    assert pod["containers"][0]["image"] == "registry/detector:1"
    assert pod["containers"][0]["resources"] == {
        "requests": {"nvidia.com/gpu": "1"}, "limits": {"nvidia.com/gpu": "1"},
    }  # fmt: skip


@pytest.mark.parametrize("zones", [None, {}, {"Zürich 1": "eu central"}, {"Zürich 1": 7}])
def test_zone_that_no_node_can_have_is_named(zones):
    """A zone that no node can have is an error, because pods that need it would wait for ever."""
    with pytest.raises((TypeError, ValueError), match=r"zones\['Zürich 1'\]: expected a value of a Kubernetes label"):
        manifests(attrs.evolve(PARIS, site="Zürich 1"), zones=zones)


def test_cpu_slots_and_memory_become_requests():
    (deployment, _service) = manifests(LYON)

    resources = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert resources == {"requests": {"cpu": "500m", "memory": "1908Mi"}, "limits": {"memory": "1908Mi"}}


def test_port_can_be_a_number_of_numpy():
    """A port and spare replicas can be numbers of NumPy."""
    assert manifests(PARIS, port=np.int64(8000)) == manifests(PARIS)
    scaled = yaml.safe_load(keda_scaled_objects([PARIS], prometheus="http://prometheus:9090", spare=np.int64(3)))
    assert scaled["spec"]["maxReplicaCount"] == 5


def test_service_prefers_its_zone_and_selects_the_pods():
    deployment, service = manifests(PARIS)

    assert service["spec"]["trafficDistribution"] == "PreferSameZone"
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_shards_send_to_the_next_one_of_their_variant():
    """First shards of all variants share a Service; a later shard has a Service per variant.

    A request may be for any variant of its model, but the output of a shard fits the same variant only.
    """
    workloads = [attrs.evolve(PARIS, variant=variant, shard=shard) for variant in ("int8", "fp16") for shard in (0, 1)]
    found = manifests(*workloads)
    pods = [it["spec"]["template"]["metadata"]["labels"] for it in found if it["kind"] == "Deployment"]

    reached = {}
    for service in (it for it in found if it["kind"] == "Service"):
        chosen = [it for it in pods if service["spec"]["selector"].items() <= it.items()]
        shards = sorted((it["streaminfer.dev/variant"], it["streaminfer.dev/shard"]) for it in chosen)
        reached[service["metadata"]["name"]] = shards

    assert reached.pop(platform_name("Detector")) == [("fp16", "0"), ("int8", "0")]
    assert reached == {platform_name(f"Detector-{it}-1"): [(it, "1")] for it in ("int8", "fp16")}


def test_part_of_a_gpu_is_rejected():
    with pytest.raises(
        ValueError, match=r"whole numbers of nvidia.com/gpu, which Kubernetes does not divide, got 0\.5"
    ):
        manifests(attrs.evolve(PARIS, slots=0.5))


@pytest.mark.parametrize(
    "write",
    [
        lambda **given: kubernetes_manifests([LYON], images={}, resources={}, **given),
        lambda **given: keda_scaled_objects([LYON], prometheus="http://prometheus:9090", **given),
        lambda **given: envoy_policies([LYON], **given),
    ],
    ids=["kubernetes", "keda", "envoy"],
)
@pytest.mark.parametrize("namespace", [5, None, ""])
def test_namespace_that_is_no_text_is_named(write, namespace):
    """Kubernetes would reject such a namespace."""
    with pytest.raises(TypeError, match=r"^namespace: expected a text that is not empty, got"):
        write(namespace=namespace)


@pytest.mark.parametrize("missing", ["images", "resources"])
def test_missing_image_or_device_is_named(missing):
    with pytest.raises(ValueError, match=f"{missing}: expected a value for '(Detector|a10)'"):
        manifests(PARIS, **{missing: {}})


def test_keda_scales_from_the_plan_up():
    """KEDA keeps at least the planned replicas, and its threshold is the rate per replica that the plan assumes."""
    text = keda_scaled_objects(
        [PARIS], spare=3, prometheus="http://prometheus:9090", query='sum(x{w="{workload}"})', namespace="v",
    )  # fmt: skip
    (scaled,) = yaml.safe_load_all(text)
    (trigger,) = scaled["spec"]["triggers"]

    assert (scaled["spec"]["minReplicaCount"], scaled["spec"]["maxReplicaCount"]) == (2, 5)
    assert scaled["spec"]["scaleTargetRef"]["name"] == manifests(PARIS)[0]["metadata"]["name"]
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"] == {
        "serverAddress": "http://prometheus:9090", "query": f'sum(x{{w="{PARIS.name}"}})', "threshold": "120",
    }  # fmt: skip


def pod_of(deployment):
    """Return the name that Kubernetes gives a pod: with the hash of its ReplicaSet, cut to 58, and five characters."""
    return f"{deployment}-5d59d67564-"[:58] + "x7k2p"


@pytest.mark.parametrize("site", ["eu", "eu-central-1-frankfurt-edge", "eu-central-1-frankfurt-edge-cabinet-17"])
def test_keda_counts_the_pods_of_one_workload(site):
    """The query matches the pods of its Deployment, and not those of a Deployment whose name has the same prefix."""
    spot = attrs.evolve(PARIS, model="detector", site=site, device="a10-spot")
    plain = attrs.evolve(spot, device="a10")
    for scaled in yaml.safe_load_all(keda_scaled_objects([plain, spot], prometheus="http://prometheus:9090")):
        name = scaled["metadata"]["name"]
        pattern = re.search('pod=~"(.*?)"', scaled["spec"]["triggers"][0]["metadata"]["query"])[1]

        found = [it.name for it in (plain, spot) if re.fullmatch(pattern, pod_of(it.name))]

        assert found == [name]


@pytest.mark.parametrize("amount", ["500m", float("nan"), -1])
@pytest.mark.parametrize("write", [manifests, lambda workload, **given: options_of([workload], **given)])
def test_amount_that_is_no_number_is_named(write, amount):
    """An amount must be a number: a Kubernetes quantity, such as 500m, is written here and never read."""
    with pytest.raises(
        (TypeError, ValueError), match=r"resources\['cpu'\]\['cpu'\]: expected a finite number ≥ 0, got"
    ):
        write(LYON, resources={"cpu": {"cpu": amount}})


def test_ray_holds_replicas_at_their_site():
    options = options_of([PARIS, LYON], resources={"a10": {"num_gpus": 1}, "cpu": {"num_cpus": 2}})

    assert options[PARIS.name] == {
        "num_replicas": 2,
        "ray_actor_options": {"num_gpus": 1, "resources": {"site:eu-paris": 0.001}},
    }
    assert options[LYON.name]["ray_actor_options"] == {
        "num_cpus": 1, "memory": 2e9, "resources": {"site:eu-lyon": 0.001},
    }  # fmt: skip


def test_platform_names_are_valid_and_differ():
    names = ["detector", "Detector", "detector 1", "detector-1", "d" * 80, "d" * 81, "7", "é"]
    made = [platform_name(name) for name in names]

    assert len(set(made)) == len(names)
    assert made[0] == "detector"
    assert all(len(name) <= 63 and name[0].isalpha() and name.strip("-") == name for name in made)


def test_services_with_the_same_name_are_rejected():
    """Two Services with the same name are rejected: here shard 1 of a model, and another model."""
    other = attrs.evolve(PARIS, model="detector-int8-1", variant="x")
    workloads = [attrs.evolve(PARIS, model="detector", shard=1), other]

    with pytest.raises(ValueError, match="plan: expected names that differ, got 'Service detector-int8-1'"):
        manifests(*workloads, images={"detector": "a", "detector-int8-1": "b"})
