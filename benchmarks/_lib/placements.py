"""Random placement problems: clusters and sites on a map, round-trip times that grow with the distance."""

import numpy as np

from streaminfer.batching.service_time.service_time import ServiceTime
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
)

__all__ = ["random_problem"]

_SPEED = {"cpu": 1.0, "gpu": 0.25}


def random_problem(clusters: int, sites: int, seed: int, *, variants: int = 3, failures: str = "") -> Problem:
    """Return a problem with three classes, three access profiles and two kinds of devices."""
    rng = np.random.default_rng(seed)
    at, place = rng.random((clusters, 2)), rng.random((sites, 2))
    regions = ["north" if y > 0.5 else "south" for _, y in place]
    access = [
        AccessProfile(name=name, rtt=Distribution.from_samples(base * rng.lognormal(0.0, spread, 500), points=40))
        for name, base, spread in (("wired", 0.002, 0.2), ("wifi", 0.005, 0.5), ("5g", 0.018, 0.4))
    ]
    classes = [
        ServiceClass(name="interactive", slo_s=0.08),
        ServiceClass(name="normal", slo_s=0.15, min_quality=0.7),
        ServiceClass(name="relaxed", slo_s=0.3, min_quality=0.7),
    ]
    models = [
        Model(
            name="detector",
            variants=tuple(
                Variant(
                    name=f"v{size}",
                    quality=0.6 + 0.1 * size,
                    max_batch_size=16,
                    shards=(
                        Shard(
                            memory_bytes=1e9 * (size + 1),
                            service_time={
                                kind: ServiceTime.affine(0.008 * 1.6**size * speed, 0.004 * 1.6**size * speed)
                                for kind, speed in _SPEED.items()
                            },
                        ),
                    ),
                )
                for size in range(variants)
            ),
        )
    ]
    demand = rng.lognormal(4.2, 1.0, clusters)
    slots = max(4, int(0.5 * demand.sum() / sites / 100))
    links = {}
    last_mile = [("wired", "wifi", "5g")[rng.integers(3)] for _ in range(clusters)]
    names = []
    for c in range(clusters):
        distance = np.hypot(*(at[c] - place).T)
        is_near = np.sort(distance)[: 1 + sites // 10].max() < 0.2 and last_mile[c] != "5g"
        names.append(("interactive", "normal", "relaxed")[rng.integers(0 if is_near else 1, 3)])
        links[f"c{c}"] = {
            f"s{s}": Link(
                rtt=Distribution.from_samples((0.003 + 0.09 * distance[s]) * rng.lognormal(0.0, 0.25, 60), points=40)
            )
            for s in range(sites)
        }
    return Problem(
        clusters=tuple(
            UserCluster(
                name=f"c{c}",
                rates=(float(demand[c]),),
                access=last_mile[c],
                service_class=names[c],
                model="detector",
                residency=(None, None, None, regions[int(np.argmin(np.hypot(*(at[c] - place).T)))])[rng.integers(4)],
            )
            for c in range(clusters)
        ),
        sites=tuple(
            Site(
                name=f"s{s}",
                price=float(rng.uniform(0.5, 2.0)),
                regions=(regions[s],),
                devices=(
                    DeviceGroup(
                        kind="cpu", slots=slots * 2, price=float(rng.uniform(0.8, 1.2)), memory_bytes=4e9 * slots
                    ),
                    DeviceGroup(kind="gpu", slots=slots, price=rng.uniform(2.5, 3.5), memory_bytes=2e9 * slots),
                ),
            )
            for s in range(sites)
        ),
        models=tuple(models),
        access=tuple(access),
        service_classes=tuple(classes),
        links=links,
        failures=failures or (),
    )
