"""Waiters of a flight whose leader grants the tiers more time than the waiters have."""

import asyncio

import pytest
from scripted_tier import Model, ScriptedTier, cache_of

import streaminfer as si
from streaminfer.testing import run

pytestmark = pytest.mark.uncompiled


class Stalled(ScriptedTier):
    """Tier that never responds, or whose lease another machine has."""

    lease_s = 3600.0
    leases_stall = False

    async def take_lease(self, key, token):
        return not self.leases_stall

    async def open_lease(self, key, token):
        pass


@pytest.mark.parametrize("stalls", ["get", "lease"])
@pytest.mark.parametrize(("timeout_s", "joined_at_s"), [(0.1, 0.0925 - 0.06), (0.5, 0.25)])
def test_stalled_tier_does_not_delay_a_joining_caller(stalls, timeout_s, joined_at_s):
    """The wait for tiers ends when the caller with the least time needs the rest of its time to compute."""

    async def main(loop):
        tier, model = Stalled(loop.clock), Model(0.06)
        cache = cache_of(loop, tier)
        async with si.Stack(cache, model, clock=loop.clock) as service:
            await service(0.0)
            tier.get_s = 3600.0 if stalls == "get" else 0.0
            tier.leases_stall = stalls == "lease"
            first = asyncio.ensure_future(service(1.0))  # no deadline: the tiers may take a second
            await asyncio.sleep(0.01)
            began = loop.time()

            assert await service(1.0, timeout_s=timeout_s) == 2.0

            assert loop.time() - began == pytest.approx(joined_at_s + 0.06, abs=1e-6)
            assert await first == 2.0
            tier.get_s = 0.0
        assert model.asked == 2

    run(main)


def test_late_caller_leaves_the_tier_its_time():
    """A caller whose deadline leaves no time for a computation does not shorten the time of the tier."""

    async def main(loop):
        tier, model = ScriptedTier(loop.clock), Model(0.06)
        async with si.Stack(cache_of(loop, tier), model, clock=loop.clock) as service:
            await service(1.0)
        async with si.Stack(cache_of(loop, tier), model, clock=loop.clock) as service:
            await service(0.0)
            tier.get_s = 0.3
            first = asyncio.ensure_future(service.call(si.Request(1.0)))
            await asyncio.sleep(0.01)
            with pytest.raises(si.DeadlineExceeded):
                await service(1.0, timeout_s=0.05)
            assert (await first).source == "disk"
            tier.get_s = 0.0

    run(main)


def test_the_caller_with_the_least_time_counts():
    """The caller with the least time limits the wait for tiers; a later caller with more time does not prolong it."""

    async def main(loop):
        tier, model = ScriptedTier(loop.clock), Model(0.06)
        async with si.Stack(cache_of(loop, tier), model, clock=loop.clock) as service:
            await service(0.0)
            tier.get_s = 3600.0
            callers = [service(1.0, timeout_s=left_s) for left_s in (5.0, 0.2, 3.0)]
            assert await asyncio.gather(*callers) == [2.0] * 3
            tier.get_s = 0.0
            assert loop.time() == pytest.approx(0.06 + 0.1 + 0.06, abs=1e-6)
        assert service.statistics()["EdgeCache"].tiers[0].read_timeouts == 1

    run(main)


def test_joined_caller_counts_for_the_next_leader():
    """After a leader fails, the next one reads the tiers again, within the time that the other waiters have left."""

    async def main(loop):
        tier, model = ScriptedTier(loop.clock), Model(0.06)
        async with si.Stack(cache_of(loop, tier), model, clock=loop.clock) as service:
            await service(0.0)
            tier.get_s = 3600.0
            model.error = si.BackendError("once")
            first, second, third = (asyncio.ensure_future(service(1.0, timeout_s=s)) for s in (None, None, 1.0))
            with pytest.raises(si.BackendError):
                await first
            model.error = None
            assert await third == await second == 2.0
            assert loop.time() == pytest.approx(0.06 + (0.5 + 0.06) + (1.0 - 0.5 - 0.06) / 2 + 0.06, abs=1e-6)
            tier.get_s = 0.0

    run(main)


def test_tier_that_used_up_its_time_is_passed_over():
    """A tier that used up the time that a waiter granted is skipped by the next flight.

    A computation that is slower than known makes callers late only once, whichever of them shortened the wait.
    """

    async def main(loop):
        tier, model = ScriptedTier(loop.clock), Model(0.06)
        tier.get_s = 3600.0
        async with si.Stack(cache_of(loop, tier), model, clock=loop.clock) as service:
            late = await asyncio.gather(*(service(1.0, timeout_s=s) for s in (0.1, 0.09)), return_exceptions=True)
            assert [type(error) for error in late] == [si.DeadlineExceeded] * 2
            assert await asyncio.gather(*(service(2.0, timeout_s=s) for s in (0.1, 0.09))) == [4.0] * 2
            tier.get_s = 0.0

    run(main)
