"""A cache around routes or replicas whose models are replaced while they serve."""

import asyncio

import pytest

import streaminfer as si
from streaminfer.testing import run

pytestmark = pytest.mark.uncompiled


class Scaling:
    """Service whose model multiplies its input and may be replaced."""

    enforces_deadline = True

    def __init__(self, factor, changes=0):
        self.factor = factor
        self.changes = changes

    def become(self, factor):
        self.factor = factor
        self.changes += 1

    def fingerprint_changes(self):
        return self.changes

    async def call(self, request):
        factor = self.factor
        await asyncio.sleep(0.01)
        return si.Response(factor * request.inputs, source="model")


class Plain(Scaling):
    """Service that does not report changes of its model."""

    fingerprint_changes = None


def routes(one, other):
    return si.FallbackRouter(si.Route("a", one), si.Route("b", other, quality=0.5))


def replicas(one, other):
    return si.Replicas(si.Replica("a", one), si.Replica("b", other), seed=1)


@pytest.mark.parametrize("join", [routes, replicas])
@pytest.mark.parametrize("kind", [Plain, Scaling])
def test_cache_follows_changes_of_several_models(join, kind):
    async def main(loop):
        model, other = Scaling(2.0), kind(2.0)
        async with si.Stack(si.EdgeCache(maxsize=8), join(model, other), clock=loop.clock) as service:
            assert await service(1.0) == 2.0
            assert (await service.call(si.Request(1.0))).source == "cache"
            model.become(3.0)
            other.factor = 3.0
            assert await service(1.0) == 3.0
            assert (await service.call(si.Request(1.0))).source == "cache"

    run(main)


@pytest.mark.parametrize("join", [routes, replicas])
def test_response_across_a_model_change_is_not_stored(join):
    async def main(loop):
        model, other = Scaling(2.0), Scaling(2.0)
        async with si.Stack(si.EdgeCache(maxsize=8), join(model, other), clock=loop.clock) as service:
            running = asyncio.ensure_future(service(1.0))
            await asyncio.sleep(0.005)
            for one in (model, other):
                one.become(3.0)
            await running
            assert await service(1.0) == 3.0

    run(main)


def test_changes_of_removed_replica_remain_counted():
    """The fingerprint changes of a replica that was removed remain counted.

    The number never returns to a value at which the models were others.
    """

    async def main(loop):
        model, other = Scaling(2.0, changes=1), Scaling(2.0)
        both = replicas(model, other)
        async with si.Stack(both, clock=loop.clock):
            await both.remove("a")
            other.become(3.0)
            assert both.fingerprint_changes() == 2

    run(main)
