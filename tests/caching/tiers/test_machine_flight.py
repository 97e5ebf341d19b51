"""Single flight across machines: of several caches on one real server, one computes and the others wait."""

import asyncio
import contextlib
import sys

import pytest
from held_time import run_held
from redis_server import PATIENT

import streaminfer as si
from streaminfer.caching import no_store
from streaminfer.caching.tiers import RedisTier
from streaminfer.errors import BackendError


@pytest.fixture(autouse=True)
def _empty(server):
    with server.client() as client:
        client.flushall()


class Model:
    """Model of all machines, which responds after ``ends`` is set."""

    fingerprint = "model 1"

    def __init__(self):
        self.called = 0
        self.begun, self.ends = asyncio.Event(), asyncio.Event()
        self.error = None
        self.stores = True
        self.value = 7

    async def call(self, request):
        self.called += 1
        self.begun.set()
        await self.ends.wait()
        if self.error is not None:
            raise self.error
        if not self.stores:
            no_store()
        return si.Response(self.value, False, "model")


@contextlib.asynccontextmanager
async def machines(server, count, model, *, lease_s=30.0, clock=None):
    """Run one stack per machine, each with a cache of its own."""
    async with contextlib.AsyncExitStack() as all_of_them:
        stacks = []
        for _ in range(count):
            tier = RedisTier(server.url, namespace="site", lease_s=lease_s, **PATIENT)
            stack = si.Stack(si.EdgeCache(tiers=[tier]), model, clock=clock)
            stacks.append(await all_of_them.enter_async_context(stack))
        yield stacks


def leases(server):
    with server.client() as client:
        return {key: client.get(key) for key in client.scan_iter("{site}:l*")}


async def until(condition):
    async with asyncio.timeout(30.0):
        while not condition():
            await asyncio.sleep(0)


def test_one_machine_computes_and_others_wait(server):
    """One machine computes; the others get its response from the tier, and afterwards no lease is held.

    A machine that takes the lease just after the entry was stored finds the entry, and leaves the lease open (``-``).
    """

    async def main():
        model = Model()
        async with machines(server, 3, model, lease_s=600.0) as stacks:
            first = asyncio.create_task(stacks[0].call(si.Request(1)))
            await model.begun.wait()
            others = [asyncio.create_task(stack.call(si.Request(1))) for stack in stacks[1:]]
            await until(lambda: all(stack.layers[0].tiers.statistics()[0].misses >= 2 for stack in stacks[1:]))
            model.ends.set()
            sources = [(await it).source for it in (first, *others)]
            assert (sources, model.called) == (["model", "redis", "redis"], 1)
            await until(lambda: set(leases(server).values()) <= {b"-"})

    asyncio.run(main())


def test_without_leases_each_machine_computes(server):
    """Without leases, the default, each machine computes, so the other tests would fail if leases had no effect."""

    async def main():
        model = Model()
        model.ends.set()
        async with machines(server, 3, model, lease_s=0.0) as stacks:
            await asyncio.gather(*(stack.call(si.Request(1)) for stack in stacks))
        return model.called

    assert asyncio.run(main()) == 3


def test_dead_leader_is_waited_for_until_lease_expires(server):
    """A machine that died with the lease delays the others until the lease expires."""

    async def main():
        model = Model()
        model.ends.set()
        async with machines(server, 1, model) as (stack,):
            name = b"{site}:lkb" + stack.layers[0].wrap(model).key_of(si.Request(1))
            loop = asyncio.get_running_loop()
            begun_s = loop.time()
            with server.client() as client:
                client.set(name, b"of the dead", px=300)
            response = await stack.call(si.Request(1))
            assert response.source == "model"
            assert loop.time() - begun_s > 0.2

    asyncio.run(main())


def test_a_lease_is_waited_for_within_its_limit(server):
    """A machine waits for a slow leader no longer than ``lease_s``."""

    async def main():
        model = Model()
        model.ends.set()
        async with machines(server, 1, model, lease_s=0.2) as (stack,):
            name = b"{site}:lkb" + stack.layers[0].wrap(model).key_of(si.Request(1))
            with server.client() as client:
                client.set(name, b"of another", px=600_000)
            assert (await stack.call(si.Request(1))).source == "model"

    asyncio.run(main())


def test_a_deadline_leaves_time_to_compute(server):
    """A request with a deadline waits for half of what it has left, and then computes in time."""

    async def main(loop):
        model = Model()
        model.ends.set()
        async with machines(server, 1, model, lease_s=600.0, clock=loop.clock) as (stack,):
            name = b"{site}:lkb" + stack.layers[0].wrap(model).key_of(si.Request(1))
            with server.client() as client:
                client.set(name, b"of another", px=600_000)
            call = asyncio.create_task(stack(1, timeout_s=2.0))
            await until(lambda: stack.layers[0].tiers.statistics()[0].misses == 1)
            await loop.pass_time(1.5)
            assert await call == 7

    run_held(main)


@pytest.mark.parametrize("way", ["error", "no_store", "rejected"])
def test_waiters_compute_if_the_leader_stores_nothing(server, way):
    """If the leader stores nothing, the waiting machines compute at once, not one after another."""

    async def main():
        model = Model()
        model.error = BackendError("down") if way == "error" else None
        model.stores = way != "no_store"
        model.value = {7} if way == "rejected" else 7  # a set cannot be encoded
        async with machines(server, 3, model, lease_s=600.0) as stacks:
            first = asyncio.create_task(stacks[0].call(si.Request(1)))
            await model.begun.wait()
            others = [asyncio.create_task(stack.call(si.Request(1))) for stack in stacks[1:]]
            await until(lambda: all(stack.layers[0].tiers.statistics()[0].misses >= 2 for stack in stacks[1:]))
            model.ends.set()
            async with asyncio.timeout(30.0):
                await asyncio.gather(first, *others, return_exceptions=True)
            assert model.called == 3
            await until(lambda: list(leases(server).values()) == [b"-"])

    asyncio.run(main())


def test_unreachable_server_is_not_waited_for():
    """Without a server each machine computes at once."""

    async def main():
        model = Model()
        model.ends.set()
        tier = RedisTier("redis://127.0.0.1:1", lease_s=600.0, **PATIENT)
        async with si.Stack(si.EdgeCache(tiers=[tier]), model) as stack, asyncio.timeout(30.0):
            return (await stack.call(si.Request(1))).source

    assert asyncio.run(main()) == "model"


def test_wrapped_functions_share_a_computation(server):
    """Wrapped async functions share a computation as services do."""

    async def main():
        called = 0
        begun, ends = asyncio.Event(), asyncio.Event()

        async def model(x):
            nonlocal called
            called += 1
            begun.set()
            await ends.wait()
            return 2 * x

        model.fingerprint = "model 1"
        tiers = [RedisTier(server.url, namespace="site", lease_s=30.0, **PATIENT) for _ in range(2)]
        async with si.EdgeCache(tiers=tiers[:1]) as one, si.EdgeCache(tiers=tiers[1:]) as other:
            first = asyncio.create_task(one.wrap(model)(1))
            await begun.wait()
            second = asyncio.create_task(other.wrap(model)(1))
            await until(lambda: other.tiers.statistics()[0].misses >= 2)
            ends.set()
            assert (await first, await second, called) == (2, 2, 1)

    asyncio.run(main())


def test_entry_found_under_lease_is_not_recomputed(server):
    """A process that takes the lease late finds the entry that another process has stored, and does not compute."""

    async def main():
        begun, ends, stored = asyncio.Event(), asyncio.Event(), asyncio.Event()
        called = 0

        class HeldUp(RedisTier):
            async def take_lease(self, key, token):
                await stored.wait()
                return await super().take_lease(key, token)

        async def model(x):
            nonlocal called
            called += 1
            begun.set()
            await ends.wait()
            return 2 * x

        model.fingerprint = "model 1"
        tiers = [kind(server.url, namespace="site", lease_s=30.0, **PATIENT) for kind in (RedisTier, HeldUp)]
        async with si.EdgeCache(tiers=tiers[:1]) as one, si.EdgeCache(tiers=tiers[1:]) as other:
            first = asyncio.create_task(one.wrap(model)(1))
            await begun.wait()
            second = asyncio.create_task(other.wrap(model)(1))
            await until(lambda: other.tiers.statistics()[0].misses == 1)
            ends.set()
            assert await first == 2
            await until(lambda: one.tiers.statistics()[0].stored == 1)
            stored.set()
            assert (await second, called) == (2, 1)

    asyncio.run(main())


MACHINE = """
import asyncio, sys
import streaminfer as si
from streaminfer.caching.tiers import RedisTier


async def model(x):
    await asyncio.sleep(0.5)
    print("computed", flush=True)
    return 2 * x


async def main():
    model.fingerprint = "model 1"
    tier = RedisTier(sys.argv[1], namespace="site", lease_s=60.0, timeout_s=30.0)
    async with si.EdgeCache(tiers=[tier]) as cache:
        print("ready", flush=True)
        sys.stdin.readline()
        print(await cache.wrap(model)(1), flush=True)


asyncio.run(main())
"""


def test_two_processes_compute_once(server):
    """Two processes that begin together compute once."""

    async def main():
        pipes = dict.fromkeys(("stdin", "stdout"), asyncio.subprocess.PIPE)
        both = [
            await asyncio.create_subprocess_exec(sys.executable, "-c", MACHINE, server.url, **pipes) for _ in range(2)
        ]
        for each in both:
            assert await each.stdout.readline() == b"ready\n"
        return b"".join(output for output, _ in await asyncio.gather(*(each.communicate(b"\n") for each in both)))

    assert sorted(asyncio.run(main()).split()) == [b"2", b"2", b"computed"]
