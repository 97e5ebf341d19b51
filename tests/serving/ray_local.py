"""Script with deployments in Ray's local testing mode; prints JSON."""

import json
import sys
from unittest import mock

import numpy as np
import ray
import ray_serve
from ray import serve

import streaminfer as si
from streaminfer.serving.ray.deployment import _make_router_config
from streaminfer.testing import ScriptedBackend


class Sum:
    """Model whose state is the sum of the inputs of its stream."""

    returns_new_arrays = True

    async def infer(self, batch):
        total = batch.inputs["h"] + batch.inputs["x"][:, None]
        return {"y": total[:, 0], "h2": total}


def make_stateful():
    return si.Stack(si.streams.StatefulBackend(Sum(), state={"h": "h2"}, initial={"h": np.zeros(1, np.int64)}))


async def make_late():
    return si.Stack(ScriptedBackend(duration_s=30.0))


def error_of(response):
    try:
        return response.result()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]


found = {}
handle = serve.run(ray_serve.app, _local_testing_mode=True)
found["doubles"] = handle.infer.remote(np.float32([1, 2, 3, 4]), timeout_s=5.0).result().tolist()
found["outcomes"] = handle.statistics.remote().result()["layers"]["Telemetry"]["outcomes"]
found["routing"] = handle.record_routing_stats.remote().result()
found["autoscaling"] = handle.record_autoscaling_stats.remote().result()
found["healthy"] = handle.check_health.remote().result()

streams = serve.run(si.serving.ray_deployment(make_stateful).bind(), _local_testing_mode=True, name="streams")
for x in (1, 2, 3):
    found["sum"] = int(streams.infer.remote({"x": np.int64(x)}, stream_id="s").result())
streams.end_stream.remote("s").result()
found["again"] = int(streams.infer.remote({"x": np.int64(5)}, stream_id="s").result())

late = serve.run(si.serving.ray_deployment(make_late).bind(), _local_testing_mode=True, name="late")
found["late"] = error_of(late.infer.remote(1.0, timeout_s=0.05))
try:
    serve.run(si.serving.ray_deployment(lambda: 5).bind(), _local_testing_mode=True, name="wrong")
except Exception as error:
    found["wrong"] = str(error)
found["wrong arguments"] = []
for arguments in ({"stack_factory": si.Stack(ScriptedBackend())}, {"headroom_router": "round robin"}):
    try:
        si.serving.ray_deployment(**{"stack_factory": make_late, **arguments})
    except Exception as error:
        found["wrong arguments"].append(str(error))

deployment = si.serving.ray_deployment(make_late, num_replicas=3, stop_timeout_s=2.0, max_ongoing_requests=7)
found["options"] = [
    deployment.num_replicas,
    deployment.max_ongoing_requests,
    deployment._deployment_config.graceful_shutdown_timeout_s,
    deployment._deployment_config.request_router_config.request_router_class,
    deployment._deployment_config.request_router_config.request_routing_stats_period_s,
]
by_ray = si.serving.ray_deployment(make_late, autoscaling_config={"min_replicas": 1, "max_replicas": 2})
found["autoscaling of Ray"] = by_ray._deployment_config.autoscaling_config.max_replicas
default = si.serving.ray_deployment(make_late, headroom_router=False)
found["default"] = default._deployment_config.request_router_config.is_default_request_router()
_make_router_config.cache_clear()
with mock.patch.dict(sys.modules, {"ray.serve.request_router": None}):  # another version of Ray
    other = si.serving.ray_deployment(make_late)
_make_router_config.cache_clear()
found["other version"] = other._deployment_config.request_router_config.is_default_request_router()

# "local": without it Ray joins any cluster that runs, or ran, on the machine
ray.init(
    "local",
    num_cpus=1,
    object_store_memory=80 << 20,
    include_dashboard=False,
    log_to_driver=False,
    logging_level="error",
)
streams = serve.run(si.serving.ray_deployment(make_stateful).bind(), _local_testing_mode=True, name="beside Ray")
found["beside Ray"] = int(streams.infer.remote({"x": np.int64(7)}, stream_id="s").result())
ray.shutdown()
print(json.dumps(found))  # noqa: T201 - its result
