"""Gain and cost of a load: the rules, and their effect on live batchers."""

import asyncio

import numpy as np
import pytest
from device_calls import ask, batcher, settle

import streaminfer as si
from streaminfer.batching.device.stake import is_in_vain
from streaminfer.batching.device.turns import Bid
from streaminfer.batching.planner.outlook import Outlook
from streaminfer.protocols import Residency
from streaminfer.testing import ScriptedBackend

FAR = float("inf")


def stake(*, deadlines=(), gap_ns=100.0, limit_ns=100, load_ns=500, weight=1.0):
    outlook = Outlook((), np.array(deadlines, np.int64), np.array([0, 10]), (gap_ns, FAR), limit_ns, True)
    return Bid("model", (), outlook, weight, load_ns=load_ns)


@pytest.mark.parametrize(
    ("arriving", "leaving", "in_vain"),
    [
        (stake(deadlines=[50]), [stake()], True),
        (stake(deadlines=[50, 509]), [stake()], True),
        (stake(deadlines=[50, 510]), [stake()], False),
        (stake(deadlines=[50], load_ns=0), [stake()], False),
        (stake(deadlines=[50], load_ns=40), [stake()], False),
        (stake(deadlines=[50]), [], False),
        (stake(deadlines=[50]), [stake(gap_ns=101.0)], False),
        (stake(deadlines=[50]), [stake(gap_ns=200.0), stake(gap_ns=200.0)], True),
        (stake(deadlines=[50], weight=2.0), [stake()], False),
        (stake(deadlines=[50]), [stake(limit_ns=1009)], True),
        (stake(deadlines=[50]), [stake(limit_ns=1010)], False),
        (stake(deadlines=[50], gap_ns=FAR), [stake(gap_ns=FAR)], False),
        (stake(deadlines=[50]), [stake()._replace(outlook=None)], False),
        (stake()._replace(outlook=None), [stake()], False),
    ],
    ids=[
        "late, no more expected",
        "late by one",
        "one in time",
        "load not known",
        "load in time",
        "nothing leaves",
        "more expected",
        "two leave",
        "weight",
        "leaving is late by one",
        "leaving comes back in time",
        "nothing expected",
        "leaving has no outlook",
        "no outlook",
    ],
)
def test_a_load_that_saves_nothing_is_in_vain(arriving, leaving, in_vain):
    """A load is in vain if it is too late for the whole queue and the leaving models lose at least what it gains."""
    assert is_in_vain(arriving, leaving, 0) is in_vain


class Swapped(ScriptedBackend):
    """Model that counts its loads."""

    def __init__(self, name, size=5, load_s=1.0):
        super().__init__(duration_s=0.001)
        self.name = name
        self.loads = 0
        self.load_s = load_s
        self.residency = Residency(size, self.load, self.unload)

    async def load(self):
        self.loads += 1
        await asyncio.sleep(self.load_s)

    async def unload(self):
        pass


async def call_often(service, *, seconds, period_s=0.02):
    calls = []
    for _ in range(round(seconds / period_s)):
        calls.append(ask(service))
        await asyncio.sleep(period_s)
    return sum(isinstance(end, si.Response) for end in await settle(calls))


async def test_unsavable_request_evicts_no_busier_model(loop):
    """A request that a load cannot save evicts no model that is busier than its own.

    The request expires; after its model was passed over for `max_wait_s`, the next request has the model loaded.
    """
    device = si.Device("gpu:0", memory_bytes=9, max_wait_s=5.0)
    often, seldom = Swapped("often"), Swapped("seldom")
    busy, idle = batcher(loop, device, often), batcher(loop, device, seldom)
    warm = [ask(service, deadline_ns=2**62) for service in (idle, busy)]
    await settle(warm)
    await call_often(busy, seconds=3)
    loads = often.loads, seldom.loads

    serving = asyncio.ensure_future(call_often(busy, seconds=4))
    for _ in range(4):
        with pytest.raises(si.DeadlineExceeded):
            await ask(idle)
        await asyncio.sleep(0.9)

    assert await serving == 200
    assert (often.loads, seldom.loads) == loads

    serving = asyncio.ensure_future(call_often(busy, seconds=4))
    await asyncio.sleep(2.0)
    with pytest.raises(si.DeadlineExceeded):
        await ask(idle)

    assert seldom.loads == loads[1] + 1
    await serving


async def test_unsavable_request_loads_into_free_memory(loop):
    """A request that a load cannot save still loads its model into free memory.

    No model has to leave for it, and the next request is on time.
    """
    device = si.Device("gpu:0", memory_bytes=10)
    often, seldom = Swapped("often"), Swapped("seldom")
    busy, idle = batcher(loop, device, often), batcher(loop, device, seldom)
    await ask(busy, deadline_ns=2**62)
    await call_often(busy, seconds=1)

    with pytest.raises(si.DeadlineExceeded):
        await ask(idle)
    await asyncio.sleep(1.0)

    assert isinstance(await ask(idle), si.Response)


async def test_a_request_without_a_deadline_is_not_put_off(loop):
    """A request without a deadline loads its model at once, because it is on time however long the load takes."""
    device = si.Device("gpu:0", memory_bytes=9, max_wait_s=5.0)
    often, seldom = Swapped("often", load_s=10.0), Swapped("seldom", load_s=10.0)
    busy, idle = (batcher(loop, device, model, slo_s=None) for model in (often, seldom))
    await settle([ask(service) for service in (idle, busy)])
    await call_often(busy, seconds=3)

    began_s = loop.time()
    assert isinstance(await ask(idle), si.Response)
    assert loop.time() - began_s == pytest.approx(10.0, abs=0.1)


async def test_postponed_load_starts_when_overdue(loop):
    """A postponed load starts when it is overdue, even if nothing else happens by then."""
    device = si.Device("gpu:0", memory_bytes=9, max_wait_s=2.0)
    often, seldom = Swapped("often", load_s=10.0), Swapped("seldom", load_s=10.0)
    busy, idle = (batcher(loop, device, model, slo_s=8.0) for model in (often, seldom))
    await settle([ask(service, deadline_ns=2**62) for service in (idle, busy)])
    await call_often(busy, seconds=3)
    loads = seldom.loads

    call = ask(idle)
    await asyncio.sleep(1.9)
    assert seldom.loads == loads
    await asyncio.sleep(0.2)
    assert seldom.loads == loads + 1
    with pytest.raises(si.DeadlineExceeded):
        await call
