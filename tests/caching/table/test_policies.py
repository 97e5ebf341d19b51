"""Eviction policies: subclasses of `EvictionOrder`, which the cache finds by name."""

import pytest

from streaminfer.caching import EdgeCache
from streaminfer.caching.table._eviction_cy import EvictionOrder
from streaminfer.caching.table._slots_cy import FIRST, Slots
from streaminfer.caching.table.eviction import policy_of

pytestmark = pytest.mark.uncompiled


class Fifo(EvictionOrder):
    """First in, first out: the queues of `EvictionOrder`, with hits that change nothing."""


def test_policy_class_decides_the_eviction_order():
    order = Fifo(Slots(FIRST + 3), 2, 2**63 - 1)
    for slot in (FIRST, FIRST + 1, FIRST + 2):
        order.add(slot, 1)

    order.touch(FIRST)

    assert order.victim(False) == FIRST


def test_lru_hit_saves_an_entry():
    order = policy_of("lru")(Slots(FIRST + 3), 2, 2**63 - 1)
    for slot in (FIRST, FIRST + 1, FIRST + 2):
        order.add(slot, 1)

    order.touch(FIRST)

    assert order.victim(False) == FIRST + 1


@pytest.mark.parametrize(("name", "error"), [("fifo", ValueError), (None, TypeError), ("../lru", ValueError)])
def test_unknown_policies_are_rejected(name, error):
    with pytest.raises(error, match="eviction: expected one of 'lru', 's3fifo'"):
        EdgeCache(eviction=name)
