"""Erasure and legal holds of a cache over its memory and its tiers, which are scripted here."""

import asyncio
import contextlib
import weakref

import numpy as np
import pytest

from streaminfer.caching.defensive_copy import freeze
from streaminfer.caching.edge_cache import EdgeCache
from streaminfer.caching.erasure.erasure import PendingErasure
from streaminfer.compliance.retention import Retention
from streaminfer.compliance.retention_log import RetentionLog
from streaminfer.errors import ErasureHeld
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled


class NotedTiers:
    """Tiers that record their calls."""

    def __init__(self, memory):
        self.asked = []
        self.memory = memory

    def erase(self, subject, tag):
        erasing = PendingErasure(subject, tag, ["disk"])
        erasing.arm(self.memory.erase(subject, tag))
        self.asked.append((subject, tag))
        return erasing

    async def legal_hold(self, subject, data_class, *, on):
        self.asked.append((subject, data_class, on))
        return ["redis"]


@pytest.fixture
def clock():
    return FakeClock(1_000)


@pytest.fixture
def cache(clock):
    return EdgeCache(retention=Retention(10.0, log=RetentionLog()), clock=clock)


@pytest.fixture
def tiers(cache):
    cache.tiers = NotedTiers(cache._memory)
    return cache.tiers


def test_an_erasure_without_tiers_is_done_at_once(cache):
    """The erasure of a cache without tiers is complete at once, because memory is the only place."""
    cache.put("k", 1, tags=["x"])

    erasure = asyncio.run(cache.erase_everywhere(tag="x"))

    assert dict(erasure.counts) == {"memory": 1}


def test_tiers_carry_out_an_erasure(cache, tiers):
    """The cache passes the selection to its tiers, which also erase memory."""
    cache.put("k", 1, subject="anna")

    assert cache.erase(subject="anna") == 1

    assert tiers.asked == [("anna", None)]
    assert len(cache) == 0


def test_nothing_is_erased_under_hold(cache, tiers):
    """An erasure that a hold forbids reaches neither memory nor a tier; `hold` returns the tiers that cannot hold."""
    cache.put("k", 1, subject="anna")

    assert asyncio.run(cache.hold(subject="anna", reason="case 17")) == ("redis",)
    with pytest.raises(ErasureHeld, match="case 17"):
        cache.erase(subject="anna")

    assert tiers.asked == [("anna", None, True)]
    assert len(cache) == 1


def test_release_of_a_hold_frees_preserved_entries(cache, tiers, clock):
    """The release of a hold frees entries that the hold preserved past their expiry, and reaches the tiers."""
    cache.put("k", 1, subject="anna")
    asyncio.run(cache.hold(subject="anna", reason="case 17"))
    clock.advance(11.0)
    cache.expire()
    assert len(cache.preserved) == 1

    asyncio.run(cache.release(subject="anna", reason="case 17 ended"))

    assert cache.preserved == ()
    assert tiers.asked == [("anna", None, True), ("anna", None, False)]


def test_a_report_needs_a_policy(clock):
    """A cache without a retention policy raises `TypeError` for a retention report."""
    with pytest.raises(TypeError, match="a cache with a policy"):
        asyncio.run(EdgeCache(clock=clock).retention_report())


@pytest.mark.parametrize("what", ["value", "failure"])
def test_result_erased_while_stored_is_not_stored(what):
    """A result is not stored if an erasure comes between the last check of its computation and the insertion."""
    cache = EdgeCache(ttl_s=10.0, negative_ttl_s=10.0)
    kinds = []
    cache.listen(lambda event: kinds.append(event.kind))

    class Result(Exception):
        @property
        def nbytes(self):  # read when the cache weighs the result
            cache.erase(tag="x")
            return 1

    def compute(tag):
        if what == "failure":
            raise Result
        return Result()

    with contextlib.suppress(Result):
        cache.wrap(compute, tags=("tag",))("x")

    seen = cache.statistics()
    assert (seen.inserted, seen.removed, kinds) == (0, 0, [])
    assert cache.flights.not_stored == (what == "value")


def test_survivors_are_counted_during_another_expiry(clock):
    """The arrays that outlive their entries are counted correctly while another thread expires an entry."""
    cache = EdgeCache(ttl_s=1.0, retention=Retention(10.0), clock=clock)
    kept = [freeze(np.zeros(1)) for _ in range(3)]

    def let_one_go(number):
        cache[number] = kept[number]
        clock.advance(2.0)
        cache.expire()

    class Departed(weakref.WeakValueDictionary):
        def __iter__(self):
            for number in super().__iter__():
                if len(self) == 2:
                    let_one_go(2)
                yield number

    retention = cache._memory.retention
    retention._outliving = Departed()
    let_one_go(0)
    let_one_go(1)

    assert retention.outliving_arrays() == 2
