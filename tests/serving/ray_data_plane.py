"""Two nodes of Ray behind its HAProxy data plane: replicas are replaced and a node is killed under load; prints JSON.

`test_ray_cluster.py` runs the script in an environment that has Ray. Ray reads the variables when it is imported.
"""

import asyncio
import http.client
import json
import os
import sys
import time

os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"] = "2"  # the default of 30 is for other load balancers
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # five seconds are too few on a busy machine
import ray
from ray import serve
from ray.cluster_utils import Cluster

import streaminfer as si

STORE_BYTES = 80 << 20
BODY = json.dumps({"inputs": [{"name": "inputs", "datatype": "FP32", "shape": [1, 1], "data": [2]}]}).encode()
PLACE = {"num_cpus": 1, "resources": {"place": 1}}


class Model:
    """Model that takes 0.1 s and multiplies its inputs by the id of its process."""

    async def infer(self, batch):
        await asyncio.sleep(0.1)
        return batch.inputs * os.getpid()


def make_stack():
    return si.Stack(si.AdaptiveBatcher(max_batch_size=8, slo_s=30.0), Model())


def deploy(replicas):
    # the data plane routes requests, and Ray accepts no other router beside it
    app = si.serving.ray_deployment(
        make_stack, model="slow", num_replicas=replicas, headroom_router=False, ray_actor_options=PLACE
    )
    return serve.run(app.bind(), route_prefix="/")


def post(port, timeout_s):
    """Send a request; return its status and the id of the process that responded."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"content-type": "application/json", "x-streaminfer-timeout-s": str(timeout_s)}
    try:
        connection.request("POST", "/v2/models/slow/infer", BODY, headers)
        response = connection.getresponse()
        body = json.loads(response.read())
        return response.status, body["outputs"][0]["data"][0] // 2 if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError) as error:
        return repr(error), None
    finally:
        connection.close()


class Load:
    """Eight clients that each send one request after another."""

    def __init__(self, port):
        self.port, self.found, self.ends = port, [], False
        self.tasks = [asyncio.create_task(self.run()) for _ in range(8)]

    async def run(self):
        while not self.ends:
            self.found.append(await asyncio.to_thread(post, self.port, 10.0))

    async def until(self, condition, timeout_s=60.0):
        """Wait until the results since the last call fulfill a condition; return these results."""
        ends_s = time.perf_counter() + timeout_s
        while not condition(self.found):
            assert time.perf_counter() < ends_s, self.found[-20:]
            await asyncio.sleep(0.05)
        found, self.found = self.found, []
        return found


def workers(found):
    return {worker for _, worker in found if worker is not None}


def statuses(found):
    """Return the statuses of the responses, without connection errors.

    HAProxy can close a new connection when it reloads its configuration. If a replica breaks off a request, HAProxy
    responds with 502 instead.
    """
    return {status for status, _ in found if isinstance(status, int)}


async def check(cluster, node, port):
    await asyncio.to_thread(deploy, 2)
    load = Load(port)
    first = await load.until(lambda found: len(workers(found)) == 2)
    old = workers(first)
    await asyncio.to_thread(deploy, 2)  # which replaces both
    replaced = await load.until(lambda found: workers(found[-20:]).isdisjoint(old) and len(workers(found[-20:])) == 2)
    late = await asyncio.to_thread(post, port, 0.02)
    await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
    killed = await load.until(lambda found: len(found) > 60 and {status for status, _ in found[-50:]} == {200})
    load.ends = True
    await asyncio.gather(*load.tasks)
    return {
        "first": sorted(statuses(first)),
        "replaced": sorted(statuses(replaced)),
        "late": late[0],
        "killed": len([status for status, _ in killed if status != 200]),
    }


def main():
    port = int(sys.argv[1])
    node = {"num_cpus": 4, "object_store_memory": STORE_BYTES, "resources": {"place": 2}}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        # this process joins the first node
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        second = cluster.add_node(**node)
        # the proxies of two nodes on one machine would share a socket
        serve.start(proxy_location="HeadOnly", http_options={"port": port})
        print(json.dumps(asyncio.run(check(cluster, second, port))))  # noqa: T201 - its result
    finally:
        ray.shutdown()
        cluster.shutdown()


main()
