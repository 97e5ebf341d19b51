"""Choose the sites of replicas from measured round-trip times, and print the manifests.

    python examples/place_replicas.py [RTT.csv]

The file has the columns cluster, site and rtt_s, in the order of measurement; without it, the example uses real
measurements of forty homes and ten places (examples/assets/ATTRIBUTION.md). Needs the extra ``placement``. Run it from
the root of a checkout.
"""

import sys
from pathlib import Path

import numpy as np

from streaminfer.batching import ServiceTime
from streaminfer.placement import (
    END_TO_END,
    DeviceGroup,
    InfeasiblePlacement,
    Model,
    Plan,
    Problem,
    RttSamples,
    ServiceClass,
    Shard,
    Site,
    UserCluster,
    Variant,
    keda_scaled_objects,
    kubernetes_manifests,
    plan,
)

ASSET = Path(__file__).parent / "assets" / "seattle_rtt.npz"
PROMISE = ServiceClass(name="live", slo_s=2.0, share=0.95)
SERVICE_TIME = ServiceTime.affine(0.004, 0.001)  # or what a batcher has learned: batcher.service_time.fitted()


def measured() -> RttSamples:
    """Return round-trip times between personal devices."""
    stored = np.load(ASSET)
    rtt_s = stored["rtt"] * (float(stored["unit_ms"]) / 1e3)
    return RttSamples.from_array(
        rtt_s, [f"home-{number}" for number in stored["clusters"]], [f"place-{number}" for number in stored["sites"]]
    )


def problem_of(samples: RttSamples) -> Problem:
    """Return a problem: 20 requests per second of each cluster to one detector, and four CPU slots at each site."""
    detector = Shard(service_time={"cpu": SERVICE_TIME}, memory_bytes=1e9)
    sites = sorted({site for row in samples.rtt_s.values() for site in row})
    return Problem(
        clusters=tuple(
            UserCluster(name=name, rates=(20.0,), access=END_TO_END.name, service_class=PROMISE.name, model="detector")
            for name in samples.rtt_s
        ),
        sites=tuple(
            Site(name=site, devices=(DeviceGroup(kind="cpu", slots=4, price=0.2),), price=0.1) for site in sites
        ),
        models=(Model(name="detector", variants=(Variant(name="int8", shards=(detector,)),)),),
        access=(END_TO_END,),
        service_classes=(PROMISE,),
        links=samples.links(),
    )


def manifests(answer: Plan) -> str:
    """Return the manifests for Kubernetes and KEDA."""
    return "---\n".join((
        kubernetes_manifests(answer, images={"detector": "registry.example/detector:3"}, resources={"cpu": {"cpu": 2}}),
        keda_scaled_objects(answer, prometheus="http://prometheus.monitoring:9090", spare=2),
    ))  # fmt: skip


def main(path: str | None = None) -> None:
    """Print the plan, the clusters with the least slack, and the manifests."""
    samples = measured() if path is None else RttSamples.from_csv(path)
    print(samples)
    try:
        answer = plan(problem_of(samples))
    except InfeasiblePlacement as error:
        sys.exit(str(error))
    print(answer)
    for it in sorted(answer.predictions.values(), key=lambda it: it.slo_s - it.latency_s)[:3]:
        print(f"{it.cluster}: p{it.share * 100:g} {it.latency_s * 1e3:.0f} ms, promised {it.slo_s * 1e3:.0f} ms")
    print(manifests(answer))


if __name__ == "__main__":
    main(*sys.argv[1:2])
