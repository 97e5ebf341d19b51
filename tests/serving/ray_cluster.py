"""Script on two local nodes of Ray: streams move, a node is killed under load, replicas are added; prints JSON.

`test_ray_cluster.py` runs it in an environment that has Ray. The script checks the steps of a stream against the model.
"""

import asyncio
import http.client
import json
import os
import sys
import time
import traceback
import urllib.error
import urllib.request

os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # five seconds are too few on a busy machine
import numpy as np
import ray
from ray import serve
from ray.cluster_utils import Cluster

import streaminfer as si
from streaminfer.serving import Autoscaling
from streaminfer.serving.ray.stream_store import store_actor

STREAMS = 12
BEGAN_S = time.perf_counter()
STORE_BYTES = 80 << 20


def say(what):
    print(f"{time.perf_counter() - BEGAN_S:5.1f} s: {what}", file=sys.stderr, flush=True)  # noqa: T201 - shows the step that hangs


class Recurrent:
    """Model with h' = 31 h + x and y = the sum of h': the state identifies all inputs and their order."""

    returns_new_arrays = True

    async def infer(self, batch):
        h = batch.inputs["h"] * 31 + batch.inputs["x"][:, None]
        return {"y": h.sum(axis=1), "h2": h}


def make_recurrent():
    model = si.streams.StatefulBackend(
        Recurrent(), state={"h": "h2"}, initial={"h": np.arange(1, 4)}, max_streams=STREAMS
    )
    return si.Stack(si.AdaptiveBatcher(max_batch_size=8), model)


class Slow:
    """Model that takes half a second for a batch of any size."""

    async def infer(self, batch):
        await asyncio.sleep(0.5)
        return list(batch.inputs)


def make_slow():
    return si.Stack(si.Telemetry("slow"), si.AdaptiveBatcher(max_batch_size=1), Slow())


class Stream:
    """Stream that sends one step after another and computes the expected responses of the model."""

    def __init__(self, handle, name):
        self.handle, self.name = handle, name
        self.states = [np.arange(1, 4)]
        self.unsure = []
        self.lost = self.failed = self.succeeded = 0
        self.longest_s = 0.0

    def after(self, state, x):
        return state * 31 + x

    async def step(self, x):
        began = time.perf_counter()
        try:
            y = await asyncio.wait_for(self.handle.infer.remote({"x": np.int64(x)}, stream_id=self.name), 5.0)
        except Exception:
            self.failed += 1
            # the failed step may still have run and be in the snapshot
            known = self.unsure or self.states[-1:]
            self.unsure = [*known, *(self.after(state, x) for state in known)]
            return
        finally:
            self.longest_s = max(self.longest_s, time.perf_counter() - began)
        # find the newest state that explains the response: the steps after it were lost
        for number, state in enumerate((*self.unsure, *reversed(self.states))):
            now = self.after(state, x)
            if now.sum() == int(y):
                self.lost = max(self.lost, number - len(self.unsure))
                self.states.append(now)
                self.unsure = []
                self.succeeded += 1
                return
        raise AssertionError(f"{self.name}: {y} follows from no earlier state")


async def steps(streams, count=None, until=None, pause_s=0.01):
    async def run(stream):
        number = 0
        while (count is None or number < count) and (until is None or not until.is_set()):
            number += 1
            await stream.step(number % 7)
            await asyncio.sleep(pause_s)

    await asyncio.gather(*map(run, streams))


def replicas_of(app):
    deployments = serve.status().applications[app].deployments
    return sum(one.replica_states.get("RUNNING", 0) for one in deployments.values())


async def until(condition, about, timeout_s=30.0):
    """Wait until the coroutine function `condition` returns true; after the timeout, raise with the text of `about`."""
    ends_s = time.perf_counter() + timeout_s
    while not await condition():
        if time.perf_counter() > ends_s:
            raise AssertionError(f"{condition.__qualname__} after {timeout_s} s: {await about()}")
        await asyncio.sleep(0.05)


async def replicas_are(app, wanted, timeout_s=30.0):
    async def as_many_replicas():
        return await asyncio.to_thread(replicas_of, app) == wanted

    async def status():
        return await asyncio.to_thread(lambda: serve.status().applications)

    await until(as_many_replicas, status, timeout_s)


def lost_of(streams):
    return {"lost": max(one.lost for one in streams), "failed": sum(one.failed for one in streams)}


async def check_streams(cluster, node):
    found = {}
    options = {"ray_actor_options": {"num_cpus": 1, "resources": {"place": 1}}, "graceful_shutdown_wait_loop_s": 0.2}

    def deploy(replicas):
        app = si.serving.ray_deployment(make_recurrent, model="recurrent", num_replicas=replicas, **options).bind()
        return serve.run(app, name="streams", route_prefix="/streams")

    handle = await asyncio.to_thread(deploy, 2)
    streams = [Stream(handle, f"s{number}") for number in range(STREAMS)]
    store = store_actor(ray, "streams#recurrent")

    async def both_own_streams():
        return len((await store.statistics()).owners) == 2

    async def some_resumed():
        return (await store.statistics()).resumed > 0

    def all_have_done(steps):
        was = [stream.succeeded for stream in streams]

        async def all_have_done_steps():
            return all(stream.succeeded >= had + steps for stream, had in zip(streams, was, strict=True))

        return all_have_done_steps

    async def about():
        counts = [(one.name, one.succeeded, one.failed) for one in streams]
        return f"{await store.statistics()}, {counts}, {await asyncio.to_thread(lambda: serve.status().applications)}"

    await steps(streams, 10)
    say("two replicas")
    found["two replicas"] = lost_of(streams) | {"moves": (await store.statistics()).to_dict()}

    done = asyncio.Event()
    load = asyncio.create_task(steps(streams, until=done))
    await asyncio.to_thread(deploy, 2)  # which replaces both replicas, one after the other
    await until(both_own_streams, about)
    await until(all_have_done(150), about, 60.0)  # more steps than a stream may lose
    say("replaced")
    found["replaced"] = lost_of(streams) | {"moves": (await store.statistics()).to_dict()}

    for stream in streams:
        stream.longest_s = 0.0
    await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
    await until(some_resumed, about)  # the processes of a node outlive it for a moment and still respond
    await until(all_have_done(5), about)
    say("recovered")
    done.set()
    await load
    moves = (await store.statistics()).to_dict()
    found["killed"] = lost_of(streams) | {"moves": moves, "longest_s": max(one.longest_s for one in streams)}
    return found


def post(url, **timeouts_s):
    body = {"inputs": [{"name": "inputs", "datatype": "FP64", "shape": [1], "data": [3.0]}]}
    headers = {"content-type": "application/json"}
    headers |= {name.replace("_", "-"): str(timeout_s) for name, timeout_s in timeouts_s.items()}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=90) as reply:  # noqa: S310 - loopback
            return reply.status, json.load(reply)["outputs"][0]["data"]
    except urllib.error.HTTPError as error:
        try:
            return error.code, error.read().decode()
        except http.client.IncompleteRead as cut:  # at its own deadline the proxy also ends a response that has begun
            return error.code, repr(cut)


def deploy_slow(name, **options):
    place = {"num_cpus": 1, "resources": {"slow": 1}}
    app = si.serving.ray_deployment(make_slow, model="slow", ray_actor_options=place, **options)
    return serve.run(app.bind(), name=name, route_prefix=f"/{name}")


async def check_deadlines(port):
    handle = await asyncio.to_thread(deploy_slow, "deadlines", num_replicas=1)
    url = f"http://127.0.0.1:{port}/deadlines/v2/models/slow/infer"
    found = {
        "http": await asyncio.to_thread(post, url, x_request_timeout_seconds=60.0),
        "late": await asyncio.to_thread(post, url, x_request_timeout_seconds=60.0, x_streaminfer_timeout_s=0.25),
        # Ray's proxy and the batcher both enforce this timeout; if the proxy is first, the replica may get no request
        "late for both": await asyncio.to_thread(post, url, x_request_timeout_seconds=0.25),
        # batches have one row, so the response to this request comes after all earlier requests have ended
        "last": await asyncio.to_thread(post, url, x_request_timeout_seconds=60.0),
        "outcomes": (await handle.statistics.remote())["layers"]["Telemetry"]["outcomes"],
    }
    say("http")
    return found


async def check_autoscaling():
    scaling = Autoscaling(max_replicas=2, queue_delay_s=0.02, upscale_delay_s=0.2, downscale_delay_s=0.5)
    handle = await asyncio.to_thread(deploy_slow, "slow", autoscaling=scaling)
    done = asyncio.Event()

    async def ask():
        while not done.is_set():
            await handle.infer.remote(1.0)

    before = await asyncio.to_thread(replicas_of, "slow")
    load = asyncio.gather(*(ask() for _ in range(4)))
    await replicas_are("slow", 2)
    say("upscaled")
    done.set()
    await load
    return before


async def check_all(cluster, node, port):
    found = {"deadlines": await check_deadlines(port), "replicas without load": await check_autoscaling()}
    found["streams"], _ = await asyncio.gather(check_streams(cluster, node), replicas_are("slow", 1, 60.0))
    return found


def main():
    port = int(sys.argv[1])
    node = {"num_cpus": 4, "object_store_memory": STORE_BYTES, "resources": {"place": 1}}
    cluster = Cluster(
        initialize_head=True, head_node_args={**node, "resources": {"place": 1, "slow": 3}, "include_dashboard": False}
    )
    try:
        # this process joins the first node
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        second = cluster.add_node(**node)
        say("ray")
        serve.start(http_options={"port": port})
        print(json.dumps(asyncio.run(check_all(cluster, second, port))))  # noqa: T201 - its result
    except BaseException:
        traceback.print_exc()  # before Ray ends this process
        raise
    finally:
        ray.shutdown()
        cluster.shutdown()


main()
