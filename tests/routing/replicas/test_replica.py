"""A replica's handle without the set of replicas that owns it."""

import asyncio

import pytest

from streaminfer.errors import DeadlineExceeded
from streaminfer.request import Request, Response
from streaminfer.routing import Replica
from streaminfer.routing.replicas._ejection_cy import OutlierEjection
from streaminfer.routing.replicas._p2c_cy import SUCCESS, P2CBalancer
from streaminfer.routing.replicas.replica import ReplicaHandle
from streaminfer.testing import run

S = 10**9


class Echo:
    name = "echo"

    async def call(self, request):
        return Response(request.inputs)


def make(service=None, clock=lambda: 0):
    balancer = P2CBalancer(2, 10 * S, OutlierEjection(5, 3.0, S, 30 * S, 0.5, 0), 0, 1)
    drained = []
    handle = ReplicaHandle(Replica("a", service or Echo()), balancer, clock, drained.append)
    handle.slot = balancer.add(1.0, 1.0, 0, 1, False, 0)
    return handle, balancer, drained


def test_removed_replica_keeps_slot_until_drained():
    """A removed replica keeps its slot until it has drained."""
    handle, balancer, drained = make()
    token, slot = balancer.choose(-1, 0), handle.slot

    handle.remove()
    handle.check_drained()
    assert (drained, handle.slot, handle.is_draining) == ([], slot, True)

    balancer.done(token, SUCCESS, 1, 1)
    handle.check_drained()
    handle.check_drained()

    assert (drained, handle.slot, handle.is_draining) == ([handle], -1, False)
    assert balancer.add(1.0, 1.0, 0, 2, False, 0) == slot


def test_drained_ignores_requests_of_next_slot_owner():
    """A removed replica that has drained does not wait for the requests of the replica that has its slot now."""
    handle, balancer, _ = make()
    handle.remove()
    handle.check_drained()
    balancer.add(1.0, 1.0, 0, 2, False, 0)
    balancer.choose(-1, 0)

    async def main(loop):
        async with asyncio.timeout(1):
            await handle.stop(drain=True)

    run(main)

    assert not handle.is_draining


def test_drained_waits_for_the_last_request():
    handle, balancer, drained = make()

    async def main(loop):
        token = balancer.choose(-1, 0)
        waiting = asyncio.ensure_future(handle.drained())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert handle.is_draining
        balancer.done(token, SUCCESS, 1, 1)
        handle.check_drained()
        await waiting

    run(main)

    assert drained == []


@pytest.mark.parametrize(("deadline_s", "left_s"), [(3, 2), (0, 0)], ids=["later", "past"])
def test_a_request_ends_at_its_deadline(deadline_s, left_s):
    """A request to a service that does not enforce deadlines ends at its deadline, and its call is cancelled."""
    ended = []

    class Hanging(Echo):
        async def call(self, request):
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ended.append(asyncio.get_running_loop().time())

    handle, _, _ = make(Hanging(), clock=lambda: S)

    async def main(loop):
        began_s = loop.time()
        with pytest.raises(DeadlineExceeded):
            await handle.call(Request(3, deadline_ns=deadline_s * S))
        assert loop.time() - began_s == pytest.approx(left_s)
        await asyncio.sleep(0)
        assert ended == [loop.time()]

    run(main)


def test_request_within_its_deadline_gets_response():
    """A request that ends before its deadline gets the response of the service."""
    handle, _, _ = make()

    async def main(loop):
        return (await handle.call(Request(3, deadline_ns=10))).outputs

    assert run(main) == 3
