"""ScaledObject of KEDA, checked against models that are generated from KEDA's definition."""

import json

import numpy as np
import pytest
import yaml
from ray_environment import run_with_ray

from streaminfer.serving import keda_scaled_object

VALID = {"deployment": "faces", "prometheus_url": "http://prometheus:9090", "max_replicas": 8}
CHECK = """
import json, sys
from cloudcoil.models.keda.v1alpha1 import ScaledObject
given = json.loads(sys.argv[1])
assert ScaledObject.model_validate(given).model_dump(by_alias=True, exclude_none=True, mode="json") == given
"""


def test_scaled_object_conforms_to_keda():
    """KEDA's definition has every field of the object, with the same type."""
    made = yaml.safe_load(keda_scaled_object("faces", **VALID))

    assert run_with_ray("-c", CHECK, json.dumps(made)).stderr == ""
    assert made["spec"]["scaleTargetRef"] == {"name": "faces"}
    assert (made["spec"]["minReplicaCount"], made["spec"]["maxReplicaCount"]) == (1, 8)


def test_a_scaled_object_asks_for_the_mean_queue_delay():
    made = yaml.safe_load(keda_scaled_object('the "best" \N{ROCKET}', **VALID, queue_delay_s=0.005, window_s=30.0))

    (trigger,) = made["spec"]["triggers"]
    selector = r'{service="the \"best\" 🚀", part="queue"}[30s]'
    family = "streaminfer_request_part_duration_seconds"
    mean = f"sum(rate({family}_sum{selector})) / sum(rate({family}_count{selector}))"
    assert trigger["metadata"]["query"] == f"({mean} >= 0) or vector(0)"
    assert (trigger["metricType"], trigger["metadata"]["threshold"]) == ("Value", "0.005")


def test_numbers_of_numpy_become_plain_numbers():
    """Numbers of NumPy give the same object as Python's numbers."""
    numbers = {"min_replicas": np.int64(1), "max_replicas": np.int64(8), "window_s": np.float32(60)}

    assert keda_scaled_object("faces", **VALID | numbers) == keda_scaled_object("faces", **VALID)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deployment": "Faces"}, "deployment: expected a name of Kubernetes"),
        ({"prometheus_url": ""}, "prometheus_url: expected a text"),
        ({"queue_delay_s": 0.0}, "queue_delay_s"),
        ({"min_replicas": 0}, "min_replicas"),
        ({"min_replicas": 9}, "max_replicas"),
        ({"window_s": 0.0}, "window_s"),
        ({"downscale_delay_s": 3601.0}, "downscale_delay_s: expected seconds from 0 to 3600"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_arguments_are_checked(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        keda_scaled_object("faces", **VALID | change)
