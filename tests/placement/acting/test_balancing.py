"""Requests go where the plan sends them, and elsewhere only if that is much faster."""

import asyncio
import re

import pytest

import streaminfer as si
from streaminfer.placement import plan_replicas
from streaminfer.testing import ScriptedBackend


def stack(duration_s):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=1, policy="greedy"), ScriptedBackend(duration_s=duration_s))


async def sent(loop, plan, services, *, concurrency=4):
    replicas = plan_replicas(plan, "lyon", services, seed=1)
    async with si.Stack(replicas, clock=loop.clock) as service:
        for _ in range(200):
            await asyncio.gather(*(service(1.0) for _ in range(concurrency)))
        statistics = replicas.statistics().replicas
    total = sum(replica.attempts for replica in statistics)
    sites = {replica.zone for replica in statistics}
    return {site: sum(it.attempts for it in statistics if it.zone == site) / total for site in sites}


async def test_planned_site_serves_its_users(loop, plan_of):
    """More than 97 % of the requests stay at the only planned site, although the other site is as fast."""
    services = {"near": [stack(0.01), stack(0.01)], "far": stack(0.01)}

    share = await sent(loop, plan_of({"near": 1.0}), services)

    assert share["near"] > 0.97


async def test_full_site_spills_over(loop, plan_of):
    """A planned site that gets more requests than it can serve sends some of them to another site."""
    share = await sent(loop, plan_of({"near": 1.0}), {"near": [stack(0.01)], "far": [stack(0.01)]}, concurrency=32)

    assert 0.1 < share["far"] < 0.5


async def test_planned_sites_share_the_requests(loop, plan_of):
    """Under load, each planned site gets the share that its replicas can serve."""
    services = {"a": [stack(0.01), stack(0.01)], "b": [stack(0.01)]}
    share = await sent(loop, plan_of({"a": 0.67, "b": 0.33}), services, concurrency=30)

    assert 0.6 < share["a"] < 0.75


def test_site_without_service_is_named(plan_of):
    message = re.escape("services: expected a service at 'b', which the plan uses, got ['a']")
    with pytest.raises(ValueError, match=message):
        plan_replicas(plan_of({"a": 0.5, "b": 0.5, "c": 0.0}), "lyon", {"a": stack(0.01)})


def test_penalty_is_checked(plan_of):
    with pytest.raises(ValueError, match="spill_penalty: expected a number above 1"):
        plan_replicas(plan_of({"a": 1.0}), "lyon", {"a": stack(0.01)}, spill_penalty=1.0)


def test_services_must_be_a_mapping(plan_of):
    with pytest.raises(TypeError, match="services: expected a mapping of site to services"):
        plan_replicas(plan_of({"a": 1.0}), "lyon", [stack(0.01)])
