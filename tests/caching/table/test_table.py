"""The expiry heap and the eviction queues alone, against models and against their uncompiled source."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer._internal.locking import is_atomic
from streaminfer.caching import EdgeCache
from streaminfer.caching.table._expiry_heap_cy import ExpiryHeap
from streaminfer.caching.table._slots_cy import FIRST, NEVER, Slots
from streaminfer.caching.table._table_cy import EdgeTable
from streaminfer.caching.table.eviction import policy_of
from streaminfer.errors import BackendError
from streaminfer.testing import FakeClock

pytestmark = pytest.mark.uncompiled

INSTANTS = st.one_of(st.integers(0, 300), st.integers(0, 10**12), st.just(2**62))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 20), INSTANTS),
        st.tuples(st.just("set"), st.integers(0, 2), INSTANTS),  # often set again
        st.tuples(st.just("remove"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("pop"), st.integers(0, 4), INSTANTS),
    ),
    max_size=60,
)


def test_slots_have_room_for_their_queues():
    """Fewer slots than there are heads of queues would be written outside their memory."""
    with pytest.raises(ValueError, match="capacity: expected a whole number ≥ 4, got 3"):
        Slots(FIRST - 1)


@pytest.mark.parametrize("which", ["as imported", "plain"])
@given(steps=STEPS)
def test_expiry_heap_pops_due_entries_in_order(plain, which, steps):
    """The heap pops exactly the due entries, each before those with later instants."""
    if which == "plain":
        slots = plain("caching.table._slots_cy").Slots(21)
        heap = plain("caching.table._expiry_heap_cy").ExpiryHeap(slots)
    else:
        slots = Slots(21)
        heap = ExpiryHeap(slots)
    model = {}
    now = 0
    for step, number, at in steps:
        if step == "set":
            heap.set(number, at)  # may replace an earlier or a later instant
            model[number] = at
        elif step == "remove":
            heap.set(number, NEVER)
            model.pop(number, None)
        elif step == "pop":
            now = max(now, at)
            for _ in range(number):
                slot = pop(heap, now)
                if slot < 0:
                    assert all(at > now for at in model.values())
                    break
                assert model[slot] == heap.popped_ns == min(model.values()) <= now
                del model[slot]
        assert heap.due_ns <= min(model.values(), default=NEVER)
        assert [heap.at(slot) for slot in range(21)] == [model.get(slot, NEVER) for slot in range(21)]
    while (slot := pop(heap, 2**62)) >= 0:
        assert model.pop(slot) == heap.popped_ns <= min(model.values(), default=NEVER)
    assert not model


def test_expiry_heap_keeps_entries_when_it_grows():
    heap = ExpiryHeap(Slots(10))
    heap.set(1, 5)
    heap.grow(20)
    heap.set(9, 4)
    heap.grow(3)
    assert {heap.pop_due(5), heap.pop_due(5)} == {1, 9}
    assert heap.pop_due(10**18) == -1
    assert heap.due_ns == NEVER


def test_heap_files_a_later_instant_lazily():
    """The expiry heap moves a slot to a later instant only when it reaches that slot."""
    heap = ExpiryHeap(Slots(300))
    for slot in range(300):
        heap.set(slot, 1_000)
        heap.set(slot, 10**12)
    assert heap.due_ns == 1_000
    assert [heap.pop_due(2_000) for _ in range(5)] == [-2, -2, -2, -2, -1], "so many at once, and then it pauses"
    assert 2_000 < heap.due_ns <= 10**12
    heap.set(7, 3_000)  # an earlier instant takes effect at once
    assert heap.due_ns == 3_000
    assert heap.pop_due(3_000) == 7
    assert heap.popped_ns == 3_000


def test_due_slot_with_a_later_instant_pops_later():
    """A slot whose instant was set later pops after one that is due before it, even if both are due."""
    heap = ExpiryHeap(Slots(10))
    heap.set(0, 10)
    heap.set(0, 15)
    heap.set(1, 12)

    popped = [(heap.pop_due(20), heap.popped_ns) for _ in range(2)]

    assert popped == [(1, 12), (0, 15)]


def test_latest_stale_responses_stay():
    """When the cache is full, the stale responses that expired last stay, also if their time was set again."""
    clock = FakeClock()
    cache = EdgeCache(maxsize=8, stale_s=100.0, clock=clock)

    @cache.wrap
    def model(inputs):
        raise BackendError("down")

    cache.put(model.key_of("later"), "later", ttl_s=1.0)
    clock.advance(0.5)
    cache.put(model.key_of("later"), "later", ttl_s=1.0)  # until 1.5 s
    cache.put(model.key_of("earlier"), "earlier", ttl_s=0.7)  # until 1.2 s
    clock.advance(2.0)
    cache.expire()
    cache.update({number: number for number in range(7)})  # leaves room for one stale response

    assert model("later") == "later"
    with pytest.raises(BackendError):
        model("earlier")


def pop(heap, now):
    while (slot := heap.pop_due(now)) == -2:
        pass
    return slot


def mixed(slot):
    return (slot * 0x9E3779B97F4A7C15 & (2**64 - 1)) >> 1


def s3fifo(maxsize, room=0):
    slots = Slots(FIRST + maxsize + 1 + room)
    for slot in range(FIRST, slots.capacity):
        slots.name(slot, mixed(slot))
    return policy_of("s3fifo")(slots, maxsize, 2**63 - 1), slots


def test_s3fifo_evicts_newcomer_without_hits_first():
    """S3-FIFO evicts a new entry without a hit before an entry with a hit."""
    order, slots = s3fifo(10)
    for slot in range(FIRST, FIRST + 11):
        order.add(slot, 1)
    order.touch(FIRST)
    assert order.victim(False) == FIRST + 9, "the others filled main"
    assert slots.queue_of(FIRST) == 0, "asked for: it moved on to main"


def test_s3fifo_returning_key_enters_main_at_once():
    order, slots = s3fifo(10)
    for slot in range(FIRST, FIRST + 11):
        order.add(slot, 1)
    victim = order.victim(False)
    order.evicted(victim)
    order.remove(victim)
    order.add(victim, 1)
    assert slots.queue_of(victim) == 0
    other = FIRST + 10
    order.remove(other)  # an entry that is removed by hand leaves no ghost
    order.add(other, 1)
    assert slots.queue_of(other) == 1


def test_negative_entries_have_a_sixteenth_of_the_room():
    order = policy_of("lru")(Slots(64), 32, 2**63 - 1)
    order.add(FIRST, 1)
    for slot in range(FIRST + 1, FIRST + 3):
        order.add_negative(slot, 1)
        order.add(slot + 10, 1)
    assert order.victim(False) == FIRST, "within their share they stay"
    order.add_negative(FIRST + 3, 1)
    assert order.victim(False) == FIRST + 1


def test_s3fifo_one_hit_moves_entry_to_full_main():
    """S3-FIFO moves an entry to the main queue after one hit if the main queue is full."""
    order, slots = s3fifo(10, room=10)
    for slot in range(FIRST, FIRST + 11):
        order.add(slot, 1)
    order.remove(order.victim(False))
    assert order.count_in(0) == 9, "filled"
    asked = FIRST + 10
    assert slots.queue_of(asked) == 1
    order.touch(asked)
    order.add(FIRST + 11, 1)
    assert order.victim(False) != asked
    assert slots.queue_of(asked) == 0


@pytest.mark.parametrize(("later", "queue"), [(2, 0), (3, 1), (4, 1)])
def test_s3fifo_ghosts_reach_back_as_far_as_entries(later, queue):
    """S3-FIFO has as many ghosts of evicted keys as the cache has entries."""
    order, slots = s3fifo(10, room=10)
    for slot in range(FIRST, FIRST + 3 + later + 1):
        order.add(slot, 1)
    for slot in range(FIRST, FIRST + later + 1):
        order.evicted(slot)
        order.remove(slot)
    assert order.count == 3
    order.add(FIRST, 1)  # `later` other ghosts are newer than its own
    assert slots.queue_of(FIRST) == queue


class Clash:
    """A key that shares its hash with others."""

    def __init__(self, number):
        self.number = number

    def __hash__(self):
        return self.number % 5

    def __eq__(self, other):
        return self.number == other.number


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=120))
def test_keys_of_equal_hash_are_told_apart(steps):
    """Keys of equal hash have separate entries, which are found after others of that hash are removed."""
    cache = EdgeCache()
    model = {}
    for comes, number in steps:
        if comes:
            cache[Clash(number)] = model[number] = object()
        else:
            assert cache.pop(Clash(number), None) is model.pop(number, None)
        assert all(cache.peek(Clash(one)) is value for one, value in model.items())
    assert len(cache) == len(model)


def test_emptied_cache_waits_for_no_expiry():
    """A cache from which all entries were removed waits for no expiry."""
    clock = FakeClock(10**9)
    cache = EdgeCache(ttl_s=1.0, clock=clock)
    cache["a"] = 1
    assert cache._memory.expire_due(clock.now_ns, 1) < NEVER
    del cache["a"]
    assert cache._memory.expire_due(clock.now_ns, 1) == NEVER


@pytest.mark.skipif(not is_atomic(EdgeTable, "peek"), reason="plain Python's lists are the collector's")
def test_garbage_collector_does_not_traverse_entries():
    cache = EdgeCache(eviction="s3fifo")
    gc.collect()
    known = {id(it) for it in gc.get_objects()}
    for number in range(20_000):
        cache[f"k{number}"] = b"v"
    new = [it for it in gc.get_objects() if id(it) not in known and it is not known]
    assert len(cache) == 20_000
    assert len(new) < 1_000
    assert max((len(gc.get_referents(it)) for it in new), default=0) < 1_000
