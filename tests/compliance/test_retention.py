"""Retention policies: the rules of an entry, and the effect of a policy on a cache in memory."""

import pytest

import streaminfer as si
from streaminfer.caching.tiers import DiskTier
from streaminfer.compliance.retention import Retention
from streaminfer.testing import FakeClock, run

pytestmark = pytest.mark.uncompiled

S = 10**9


class Place:
    def __init__(self, *, on_disk=False, shared=False, encrypted=False):
        self.on_disk, self.shared, self.encrypted = on_disk, shared, encrypted


def test_the_strictest_of_several_classes_holds():
    policy = Retention(
        100.0, classes={"a": Retention(200.0, encrypt=True), "b": Retention(50.0, allow_disk=False, allow_shared=False)}
    )
    assert policy.rule(["x"]) == ("", 100.0, False, True, True, 0.0)
    assert policy.rule(["x", "a"]) == ("a", 200.0, True, True, True, 0.0)  # the rule of its class, without the default
    assert policy.rule(["a", "b"]) == ("b", 50.0, True, False, False, 0.0)
    assert policy.shortest_s == 50.0
    assert Retention(3.0, classes=None).shortest_s == 3.0


@pytest.mark.parametrize(
    ("rule", "place", "permitted"),
    [
        ({}, {"on_disk": True, "shared": True}, True),
        ({"allow_disk": False}, {"on_disk": True}, False),
        ({"allow_disk": False}, {"shared": True}, True),
        ({"allow_shared": False}, {"shared": True}, False),
        ({"allow_shared": False}, {"on_disk": True}, True),
        ({"encrypt": True}, {"on_disk": True}, False),
        ({"encrypt": True}, {"on_disk": True, "encrypted": True}, True),
    ],
)
def test_rule_permits_or_forbids_a_place(rule, place, permitted):
    assert Retention(1.0, **rule).rule(()).permits(Place(**place)) is permitted


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Retention(0.0), ValueError, "max_age_s"),
        (lambda: Retention("1"), TypeError, "max_age_s"),
        (lambda: Retention(1.0, encrypt=1), TypeError, "encrypt"),
        (lambda: Retention(1.0, allow_shared=None), TypeError, "allow_shared"),
        (lambda: Retention(1.0, classes=["a"]), TypeError, "classes: expected a mapping"),
        (lambda: Retention(1.0, classes={"": Retention(1.0)}), TypeError, "not empty"),
        (lambda: Retention(1.0, classes={"a": 3}), TypeError, r"classes\['a'\]"),
        (lambda: Retention(1.0, classes={"a": Retention(1.0, classes={"b": Retention(1.0)})}), ValueError, "without"),
        (lambda: Retention(1.0, log=3), TypeError, "log"),
        (lambda: si.EdgeCache(retention=Retention(5.0, classes={"a": Retention(2.0)}), stale_s=2.0), ValueError, "2 s"),
    ],
)
def test_invalid_policies_are_rejected(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_encrypting_policy_rejects_tier_without_keys(tmp_path):
    """A policy that encrypts rejects a disk tier without keys, unless it forbids the disk anyway."""
    disk = DiskTier(tmp_path, max_bytes=2**20)
    with pytest.raises(ValueError, match=r"keys=StoredKeys\("):
        si.EdgeCache(retention=Retention(5.0, encrypt=True), tiers=[disk])
    si.EdgeCache(retention=Retention(5.0, encrypt=True, allow_disk=False), tiers=[disk])
    si.EdgeCache(retention=Retention(5.0, classes={"a": Retention(1.0, encrypt=True)}), tiers=[disk])


def test_no_entry_in_memory_outlives_its_class():
    """No entry in memory is older than the policy of its class permits."""
    clock = FakeClock(1000 * S)
    policy = Retention(60.0, classes={"face": Retention(10.0), "text": Retention(90.0)})
    cache = si.EdgeCache(retention=policy, stale_s=4.0, negative_ttl_s=1e300, clock=clock)
    cache["plain"] = 1
    cache.setdefault("also", 1)
    cache.put("face", 1, tags=("face",))
    cache.put("longer", 1, tags=("face",), ttl_s=1e6)
    cache.put("short", 1, ttl_s=1.0)
    cache.put("text", 1, tags=("text",))
    cache.put_negative("bad", ValueError(), tags=("face",))
    cache.put_negative("worse", ValueError())
    states = {}
    for _ in range(100):
        for key in ("plain", "also", "face", "longer", "short", "text", "bad", "worse"):
            states.setdefault(key, []).append(cache._memory.lookup(key, clock())[0])
        clock.advance(1.0)
        cache.expire()
    gone = {key: seen.index(0) for key, seen in states.items()}
    assert gone == {"plain": 60, "also": 60, "face": 10, "longer": 10, "short": 5, "text": 90, "bad": 10, "worse": 60}
    assert [states["face"].index(2), states["plain"].index(2)] == [6, 56]


def test_report_needs_policy_and_knows_ages_in_memory():
    """A retention report requires a policy and states the ages of the entries in memory."""
    clock = FakeClock(1000 * S)

    async def main(loop):
        with pytest.raises(TypeError, match="policy"):
            await si.EdgeCache().retention_report()
        cache = si.EdgeCache(retention=Retention(60.0), clock=clock)
        cache["a"] = b"123"
        clock.advance(2.0)
        cache["b"] = b"4"
        (holding,) = (await cache.retention_report()).holdings
        assert (holding.where, holding.entries, holding.oldest_age_s, holding.size_bytes) == ("memory", 2, 2.0, 4)

    run(main)


def test_setdefault_entry_has_a_class_and_an_age():
    clock = FakeClock(1000 * S)

    async def main(loop):
        cache = si.EdgeCache(retention=Retention(60.0, min_age_s=10.0), clock=clock)
        assert cache.setdefault("a", b"123") == b"123"
        clock.advance(2.0)
        assert cache.setdefault("a", b"other") == b"123"
        (holding,) = (await cache.retention_report()).holdings
        cache["b"] = b"4"
        (both,) = (await cache.retention_report()).holdings
        assert (holding.entries, holding.oldest_age_s, both.entries) == (1, 2.0, 2)

    run(main)
