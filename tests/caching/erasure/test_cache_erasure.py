"""Erasure and legal holds over memory and tiers, without the cache around them."""

import asyncio

import pytest

from streaminfer.caching.erasure.cache_erasure import CacheErasure
from streaminfer.caching.erasure.erasure import PendingErasure
from streaminfer.caching.freshness import Freshness
from streaminfer.caching.memory import Memory
from streaminfer.caching.table._table_cy import NO_LIMIT
from streaminfer.caching.table.eviction import policy_of
from streaminfer.compliance.retention import Retention
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.errors import ErasureHeld
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled


class NotedTiers:
    """Tiers that note what they are asked for."""

    def __init__(self):
        self.asked = []

    def erase(self, subject, tag, erase_memory):
        erasing = PendingErasure(subject, tag, ["disk"])
        erasing.arm(erase_memory())
        self.asked.append((subject, tag))
        return erasing

    async def legal_hold(self, subject, data_class, *, on):
        self.asked.append((subject, data_class, on))
        return ["redis"]


def memory_of(clock, policy):
    freshness = Freshness(
        ttl_s=None, ttl_jitter=0.0, stale_s=0.0, stale_while_revalidate_s=None, stale_if_error_s=None,
        negative_ttl_s=0.0, seed=None, policy=policy,
    )  # fmt: skip
    return Memory(NO_LIMIT, NO_LIMIT, freshness, policy_of("lru"), clock)


@pytest.fixture
def clock():
    return FakeClock(1_000)


@pytest.fixture
def memory(clock):
    return memory_of(clock, Retention(10.0, log=RetentionLog()))


def test_an_erasure_without_tiers_is_done_at_once(memory):
    """Memory is the only place, so the outcome is there when `begin` returns."""
    memory.put("k", 1, tags=["x"])

    erasing = CacheErasure(memory, None).begin(None, "x")

    assert (erasing.in_memory, dict(erasing.outcome.result().counts)) == (1, {"memory": 1})


def test_tiers_carry_out_an_erasure(memory):
    """Tiers get the selection and erase memory in between, so nothing is done until they are."""
    tiers = NotedTiers()
    memory.put("k", 1, subject="anna")

    erasing = CacheErasure(memory, tiers).begin("anna", None)

    assert tiers.asked == [("anna", None)]
    assert (erasing.in_memory, len(memory.snapshot(0)), erasing.outcome.done()) == (1, 0, False)


def test_nothing_is_erased_under_hold(memory):
    """An erasure that a hold forbids reaches neither memory nor a tier; the hold returns the tiers that cannot hold."""
    tiers = NotedTiers()
    erasure = CacheErasure(memory, tiers)
    memory.put("k", 1, subject="anna")

    assert asyncio.run(erasure.hold("anna", None, "case 17")) == ("redis",)
    with pytest.raises(ErasureHeld, match="case 17"):
        erasure.begin("anna", None)

    assert tiers.asked == [("anna", None, True)]
    assert len(memory.snapshot(0)) == 1


def test_a_release_frees_what_was_preserved(memory, clock):
    """What a hold preserved beyond its time goes with the release, and the tiers learn of that."""
    tiers = NotedTiers()
    erasure = CacheErasure(memory, tiers)
    memory.put("k", 1, subject="anna")
    asyncio.run(erasure.hold("anna", None, "case 17"))
    clock.advance(11.0)
    memory.expire()
    assert len(memory.retention.preserved) == 1

    asyncio.run(erasure.release("anna", None, "case 17 ended"))

    assert memory.retention.preserved == ()
    assert tiers.asked == [("anna", None, True), ("anna", None, False)]


def test_a_report_needs_a_policy(clock):
    """A cache without a policy has nothing to report."""
    erasure = CacheErasure(memory_of(clock, None), None)

    with pytest.raises(TypeError, match="a cache with a policy"):
        asyncio.run(erasure.report())
