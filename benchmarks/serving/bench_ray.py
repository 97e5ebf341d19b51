"""A stack on Ray Serve beside Serve alone: ``python benchmarks/run.py ray [SECTION ...]``.

added     p50 of a call, over a bare Serve deployment of the same model, through a handle and over HTTP
haproxy   the same over HTTP through Serve's HAProxy data plane
goodput   goodput of two replicas over one, with a model that waits as if for a device
unequal   one fast and one 4× slower replica at 0.8 of joint capacity: share on time with the headroom router over that
          with Serve's default router
kill      a node killed under 0.7 of one node's load: seconds until 95 % of the requests are on time again
fleet     a thousand replicas in virtual time, with the router's own ranking: on time, and the cost of a choice

All sections run in one process tree on one machine, with two nodes of Ray if they need them. Rounds alternate.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import logging
import os
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

os.environ["RAY_SERVE_LOG_TO_STDERR"] = "0"
# Ray's default is 15, with which the load generator would take the CPU of the replicas
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's spelling
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # five seconds are too few on a busy machine
import attrs
import numpy as np
from _lib.figures import Figure
from _lib.ray_fleet import Fleet, simulate

import streaminfer as si
from streaminfer.serving.ray.headroom import HeadroomRanking, LoadReport

ADDED = Figure("p50 of a call of a stack on Ray Serve", over="a bare deployment of the same model", at_most=1.1)
GOODPUT = Figure("goodput of two replicas on Ray Serve", over="one replica", at_least=1.9)
UNEQUAL = Figure(
    "share on time of a fast and a 4× slower replica at 0.8 of capacity, headroom router",
    over="Serve's default router",
    at_least=1.3,
)
RECOVERY = Figure("time until 95 % are on time after a node of Ray was killed", form="{:.1f} s", at_most=5.0)
ROUNDS, CALLS = 5, 150
STORE_BYTES = 80 << 20
BATCH, BATCH_S, SLOWER = 4, 0.2, 4  # slow, to measure the routing and not this machine's cores
PLACE = {"num_cpus": 1, "resources": {"place": 1}}
WEIGHTS = np.random.default_rng(18).standard_normal((256, 256)).astype(np.float32)
X = np.linspace(0.0, 1.0, 256, dtype=np.float32)


def mlp(rows: Any) -> Any:
    """Run a model that takes about half a millisecond."""
    for _ in range(20):
        rows = np.tanh(rows @ WEIGHTS)
    return rows


def make_mlp() -> si.Stack:
    model = si.CpuBackend(mlp, example=X, executor="inline")
    return si.Stack(si.AdaptiveBatcher(max_batch_size=8, slo_s=1.0), model)


class Bare:
    """Deployment as users write it without streaminfer: it runs the model for each request."""

    async def __call__(self, request: Any) -> Any:
        body = await request.json()
        rows = np.asarray(body["inputs"][0]["data"], np.float32).reshape(body["inputs"][0]["shape"])
        return {"outputs": [{"name": "output", "datatype": "FP32", "shape": rows.shape, "data": mlp(rows).tolist()}]}

    async def infer(self, inputs: Any) -> Any:
        return mlp(inputs[None])[0]


class Device:
    """Simulated device, whose batches take time but no CPU."""

    def __init__(self, batch_s: float) -> None:
        self._batch_s = batch_s

    async def infer(self, batch: Any) -> Any:
        await asyncio.sleep(self._batch_s)
        return list(batch.inputs)


def make_device(slow_node: str = "") -> Callable[[], si.Stack]:
    """Return a factory of stacks; the stack of the replica on ``slow_node`` is slower."""

    def make() -> si.Stack:
        import ray

        slower = SLOWER if ray.get_runtime_context().get_node_id() == slow_node else 1
        return si.Stack(si.AdaptiveBatcher(max_batch_size=BATCH), Device(BATCH_S * slower))

    return make


@contextlib.contextmanager
def cluster(nodes: int) -> Iterator[tuple[Any, list[Any], int]]:
    """Run Ray on this machine; yield the cluster, its nodes and the port for HTTP."""
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # each late request would log a traceback
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    places = {"place": 1, "headroom": 1, "default": 1}
    each = {"num_cpus": 8, "object_store_memory": STORE_BYTES, "resources": places}
    found = Cluster(initialize_head=True, head_node_args={**each, "include_dashboard": False})
    try:
        # this process belongs to the first node
        ray.init(address=found.address, log_to_driver=False, logging_level="error")
        made = [found.head_node, *(found.add_node(**each) for _ in range(nodes - 1))]
        serve.start(http_options={"port": port})
        yield found, made, port
        serve.shutdown()
    finally:
        ray.shutdown()
        found.shutdown()


def deploy(name: str, factory: Any, **options: Any) -> Any:
    from ray import serve

    app = si.serving.ray_deployment(factory, model="m", **options).bind()
    return serve.run(app, name=name, route_prefix=f"/{name}")


# -- sections ---------------------------------------------------------------------------------------------------


def beside_bare(plane: str, ask: Mapping[str, Callable[[], Any]]) -> bool:
    """Report our p50 over that of a bare deployment; rounds alternate, and calls run one after another."""
    medians: dict[str, list[float]] = {who: [] for who in ask}
    for number in range(ROUNDS + 1):
        for who in sorted(ask, reverse=bool(number % 2)):
            took = []
            for _ in range(CALLS):
                began = time.perf_counter()
                ask[who]()
                took.append(time.perf_counter() - began)
            if number:  # the first round warms up
                medians[who].append(statistics.median(took))
    ratios = [ours / bare for ours, bare in zip(medians["ours"], medians["bare"], strict=True)]
    ours, bare = (statistics.median(medians[who]) * 1e3 for who in ("ours", "bare"))
    return ADDED.report(ratios, case=plane, note=f"{ours:.2f} ms, bare {bare:.2f} ms")


def call(handle: Any) -> None:
    handle.infer.remote(X).result()


def post(url: str) -> Callable[[], None]:
    tensor = {"name": "inputs", "datatype": "FP32", "shape": [1, 256], "data": X.tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})  # noqa: S310 - loopback

    def ask() -> None:
        with urllib.request.urlopen(request) as reply:  # noqa: S310 - loopback
            if len(json.load(reply)["outputs"][0]["data"]) not in {1, 256}:
                raise RuntimeError("another response")

    return ask


def added(planes: tuple[str, ...] = ("through a handle", "over HTTP with JSON")) -> bool:
    from ray import serve

    with cluster(1) as (_, _, port):
        # HAProxy has its own router, and Ray raises if there is another one
        ours = deploy("ours", make_mlp, headroom_router="HAProxy" not in planes[0], ray_actor_options={"num_cpus": 1})
        bare = serve.deployment(Bare, max_ongoing_requests=1024, ray_actor_options={"num_cpus": 1})
        handle = serve.run(bare.bind(), name="bare", route_prefix="/bare")
        met = []
        for plane in planes:
            ask: dict[str, Callable[[], None]]
            if plane == "through a handle":
                ask = {"ours": functools.partial(call, ours), "bare": functools.partial(call, handle)}
            else:
                paths = {"ours": "ours/v2/models/m/infer", "bare": "bare"}
                ask = {who: post(f"http://127.0.0.1:{port}/{path}") for who, path in paths.items()}
            met.append(beside_bare(plane, ask))
    return all(met)


def haproxy() -> bool:
    """Run `added` in a separate process, because Ray reads the variable at import."""
    environment = {
        **os.environ,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
    }
    return subprocess.run([sys.executable, __file__, "_haproxy"], env=environment, check=False).returncode == 0


@attrs.define
class Outcomes:
    sent: int = 0
    on_time: int = 0
    when: list[tuple[float, bool]] = attrs.Factory(list)

    @property
    def share(self) -> float:
        return self.on_time / self.sent


async def offer(
    handle: Any, per_s: float, seconds: float, slo_s: float, during: Awaitable[Any] | None = None
) -> Outcomes:
    """Send at even intervals, without waiting for responses; latency counts from the intended instant."""
    found, tasks = Outcomes(), []
    began = time.perf_counter()

    async def one(intended: float) -> None:
        try:
            async with asyncio.timeout(slo_s * 2):
                await handle.infer.remote(1.0, timeout_s=slo_s)
            good = time.perf_counter() - intended <= slo_s
        except Exception:
            good = False
        found.on_time += good
        found.when.append((intended - began, good))

    other = None if during is None else asyncio.ensure_future(during)
    while (intended := began + found.sent / per_s) < began + seconds:
        await asyncio.sleep(max(intended - time.perf_counter(), 0))
        found.sent += 1
        tasks.append(asyncio.create_task(one(intended)))
    await asyncio.gather(*tasks)
    if other is not None:
        await other
    return found


def goodput() -> bool:
    one_s = BATCH / BATCH_S
    goodputs: dict[int, list[float]] = {1: [], 2: []}
    with cluster(2):
        handles = {
            count: deploy(f"r{count}", make_device(), num_replicas=count, ray_actor_options={"num_cpus": 1})
            for count in goodputs
        }
        for number in range(4):
            for count, handle in handles.items():
                seconds = 8.0 if number else 2.0
                found = asyncio.run(offer(handle, one_s * count * 0.95, seconds, 8 * BATCH_S))
                if number:
                    goodputs[count].append(found.on_time / seconds)
    ratios = [two / one for one, two in zip(goodputs[1], goodputs[2], strict=True)]
    two, one = (statistics.median(goodputs[count]) for count in (2, 1))
    return GOODPUT.report(ratios, note=f"{two:.0f}/s and {one:.0f}/s")


def unequal() -> bool:
    per_s, slo_s = 0.8 * BATCH / BATCH_S * (1 + 1 / SLOWER), 5 * BATCH_S
    shares: dict[str, list[float]] = {"headroom": [], "default": []}
    with cluster(2) as (_, nodes, _):
        make = make_device(nodes[1].node_id)
        handles = {
            name: deploy(
                name,
                make,
                num_replicas=2,
                headroom_router=name == "headroom",
                ray_actor_options={"num_cpus": 1, "resources": {name: 1}},  # one on each node
            )
            for name in shares
        }
        for number in range(3):
            for name in sorted(shares, reverse=bool(number % 2)):
                asyncio.run(offer(handles[name], per_s / 2, 3.0, slo_s))
                shares[name].append(asyncio.run(offer(handles[name], per_s, 20.0, slo_s)).share)
    ratios = [ours / theirs for ours, theirs in zip(shares["headroom"], shares["default"], strict=True)]
    ours, theirs = (statistics.median(shares[name]) for name in ("headroom", "default"))
    return UNEQUAL.report(ratios, note=f"{ours:.3f} and {theirs:.3f}")


def kill() -> bool:
    per_s, slo_s, killed_s = 0.7 * BATCH / BATCH_S, 5 * BATCH_S, 6.0
    with cluster(2) as (found, nodes, _):
        handle = deploy("kill", make_device(), num_replicas=2, ray_actor_options=PLACE)

        async def strike() -> None:
            await asyncio.sleep(killed_s)
            await asyncio.to_thread(found.remove_node, nodes[1], allow_graceful=False)

        asyncio.run(offer(handle, per_s / 2, 3.0, slo_s))
        outcomes = asyncio.run(offer(handle, per_s, killed_s + 14.0, slo_s, strike()))
    after = [(when - killed_s, good) for when, good in sorted(outcomes.when) if when >= killed_s]
    # the first instant after which 95 % are on time in each of the next two seconds
    recovered_s = next(
        (
            start / 10
            for start in range(120)
            if all(
                statistics.mean(good for when, good in after if low <= when < low + 1.0) >= 0.95
                for low in (start / 10, start / 10 + 1.0)
            )
        ),
        float("inf"),
    )
    lost = sum(not good for _, good in after)
    before = [good for when, good in outcomes.when if when < killed_s]
    note = f"{lost} of the {len(after)} requests that followed were late or lost"
    return RECOVERY.report(recovered_s, note=f"{note}; {statistics.mean(before):.3f} on time before")


def fleet() -> bool:
    base = Fleet(slowness=[1.0] * 1000, routers=16, seconds=3.0, setup_s=0.04, row_s=0.02, slo_s=(1.0,))
    mixed = attrs.evolve(base, slowness=[1.0] * 500 + [4.0] * 500)
    cases = {
        "1,000 equal replicas, 16 routers": base,
        "the same, 64 routers": attrs.evolve(base, routers=64),
        "the same, reports 1 s old": attrs.evolve(base, report_age_s=1.0),
        "half of them 4 times slower": mixed,
        "the same at 0.95 of capacity": attrs.evolve(mixed, load=0.95),
        "the same, reports 1 s old ": attrs.evolve(mixed, report_age_s=1.0),
        "equal, 100 die at half time, load 0.7": attrs.evolve(base, load=0.7, killed=100, seconds=6.0),
    }
    print(f"{'fleet: share on time / p99':44}{'headroom':>18}{'queue length':>18}{'random':>18}")
    for name, one in cases.items():
        found = [simulate(one, choice) for choice in ("headroom", "queue length", "random")]
        print(f"{name:44}" + "".join(f"{it.on_time:>9.4f} {it.p99_s * 1e3:>5.0f} ms" for it in found))
    for count in (10, 100, 1000, 10_000):
        ranking: HeadroomRanking[int] = HeadroomRanking()
        reports = [{name: LoadReport(number, 0.01, 0.01, 3) for name in range(count)} for number in range(5)]
        began = time.perf_counter()
        for number, each in enumerate(reports):
            ranking.update(each, number)
        update_s = (time.perf_counter() - began) / len(reports)
        began = time.perf_counter()
        for _ in range(2000):
            ranking.send(ranking.rank()[0])
        rank_s = (time.perf_counter() - began) / 2000
        print(f"{count:>6,} replicas: a choice {rank_s * 1e6:.1f} µs, an update of all {update_s * 1e3:.2f} ms "
              f"({update_s / 0.2:.1%} of a core at five a second)")  # fmt: skip
    return True


SECTIONS: dict[str, Callable[[], bool]] = {
    "added": added,
    "haproxy": haproxy,
    "goodput": goodput,
    "unequal": unequal,
    "kill": kill,
    "fleet": fleet,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    names = parser.parse_args().sections or list(SECTIONS)
    if names == ["_haproxy"]:
        return 0 if added(("over HTTP through HAProxy",)) else 1
    passed = [SECTIONS[name]() for name in names]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    raise SystemExit(main())
