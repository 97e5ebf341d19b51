"""Users at two places, two sites, and plans for them."""

import attrs
import pytest

from streaminfer.batching import ServiceTime
from streaminfer.placement import (
    AccessProfile,
    DeviceGroup,
    Distribution,
    Link,
    Model,
    Problem,
    ServiceClass,
    Shard,
    Site,
    UserCluster,
    Variant,
    plan,
    plan_hours,
)


def links(**rtt_s):
    return {site: Link(rtt=Distribution.of(value)) for site, value in rtt_s.items()}


@pytest.fixture(scope="module")
def problem():
    shard = Shard(service_time={"cpu": ServiceTime.affine(0.004, 0.002)}, memory_bytes=2e9)
    clusters = [
        UserCluster(name=name, rates=(20.0, rate), access="fiber", service_class="live", model="detector")
        for name, rate in (("lyon", 900.0), ("paris", 150.0))
    ]
    return Problem(
        clusters=clusters,
        sites=[Site(name=name, devices=[DeviceGroup(kind="cpu", slots=4)]) for name in ("east", "west")],
        models=[Model(name="detector", variants=[Variant(name="int8", shards=[shard])])],
        access=[AccessProfile(name="fiber", rtt=Distribution.of(0.002))],
        service_classes=[ServiceClass(name="live", slo_s=0.060)],
        links={"lyon": links(east=0.008, west=0.050), "paris": links(east=0.050, west=0.006)},
    )


@pytest.fixture(scope="module")
def answer(problem):
    return plan(problem)


@pytest.fixture(scope="module")
def hourly(problem):
    return plan_hours(problem)


@pytest.fixture
def plan_of(answer):
    """Return a function that makes a plan which sends these shares of the requests of Lyon to the sites."""

    def make(shares):
        groups = [attrs.evolve(answer.replicas[0], sites=(site,)) for site in shares]
        return attrs.evolve(
            answer, replicas=groups, assignments={(0, "normal"): {"lyon": dict(enumerate(shares.values()))}}
        )

    return make
