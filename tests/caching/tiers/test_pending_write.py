"""Queue of a tier's writes: its limits, and which values it leaves out."""

import asyncio
import random

import pytest

from streaminfer.caching.tiers import DiskTier, Entry, RedisTier, Tier
from streaminfer.caching.tiers import pending_write as module
from streaminfer.caching.tiers.pending_write import PendingWrite, WriteQueue

S = 10**9
AGED = 100.0  # a minimum age that no test reaches


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setattr(module, "MAX_QUEUED_WRITES", 8)
    monkeypatch.setattr(module, "MAX_QUEUED_BYTES", 100)


@pytest.fixture
def queue():
    return WriteQueue(preserves=True)


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def add(loop):
    """Queues a value of a key, or its deletion for ``None``, and returns the values that the tier will not get."""

    def add(queue, key, value, min_age_s=0.0, *, size=1, accepts=True):
        entry = None if value is None else Entry(value=value, stored_ns=0, min_age_s=min_age_s)
        deletes = value is None
        write = PendingWrite(key, entry, 0 if deletes else size, loop.create_future(), deletes)
        return [value_of(it) for it in queue.add(write, S, accepts=accepts)]

    return add


def value_of(write):
    return write.entry and write.entry.value


def popped(queue):
    return [(it.key, value_of(it)) for it in (queue.pop() for _ in range(len(queue)))]


def test_full_queue_takes_newer_value_and_deletion(queue, add):
    """Without room for both values of a key, the newer one is written; its deletion always is, and takes no room."""
    for number in range(7):
        add(queue, f"other {number}", 0)
    add(queue, "k", "old", AGED)

    assert add(queue, "k", "new", AGED) == ["old"]
    assert add(queue, "k", None) == ["new"]
    assert add(queue, "absent", None) == []
    assert add(queue, "another", 1) == []
    assert add(queue, "one more", 2) == [2]
    assert popped(queue)[7:] == [("k", None), ("absent", None), ("another", 1)]


def test_removals_are_bounded(queue, loop, add):
    """A tier that hangs does not collect removals without end; they and puts take no room from each other."""

    def remove(key):
        return queue.add(PendingWrite(key, None, 0, loop.create_future()), S, accepts=True)

    add(queue, "k", "old", AGED)
    add(queue, "k", "new", AGED)
    removed = [write.key for number in range(10) for write in remove(f"absent {number}")]

    assert removed == ["absent 8", "absent 9"]
    assert add(queue, "other", 1) == []
    assert popped(queue)[:2] == [("k", "old"), ("k", "new")]


def test_one_key_leaves_room_for_others(queue, add):
    """Earlier values of a key take only the room that the latest writes of all keys leave, the oldest first out."""
    dropped = [value for number in range(20) for value in add(queue, "hot", number, AGED)]

    assert dropped == list(range(12))
    assert add(queue, "other", "one", AGED) == [12]
    assert add(queue, "other", "two", AGED) == [13]
    expected = [("hot", number) for number in range(14, 20)]
    assert popped(queue) == [*expected, ("other", "one"), ("other", "two")]


def test_earlier_values_leave_room_in_bytes(queue, add):
    """Earlier values are dropped for a large newer one."""
    for number in range(3):
        assert add(queue, "k", number, AGED, size=30) == []

    assert add(queue, "large", 3, size=50) == [0, 1]
    assert popped(queue) == [("k", 2), ("large", 3)]


def test_queue_without_preservation_has_latest_values(add):
    """If the tier would replace the earlier value at once, that is not written first."""
    queue = WriteQueue(preserves=False)

    assert [add(queue, "k", number, AGED) for number in range(3)] == [[], [0], [1]]
    assert popped(queue) == [("k", 2)]


@pytest.mark.parametrize("value", ["new", None])
def test_no_value_of_a_rejected_key_is_written(queue, add, value):
    """When the queue accepts nothing more, it writes no value that was replaced or deleted."""
    for number in range(2):
        add(queue, "k", number, AGED)
    add(queue, "other", 3, AGED)

    assert add(queue, "k", value, accepts=False) == [0, 1, value]
    assert popped(queue) == [("other", 3)]


@pytest.mark.parametrize("seed", range(50))
def test_earlier_values_cost_no_latest_write(add, seed):
    """Whatever comes, the queue has the same latest writes as one that preserves nothing."""
    chance = random.Random(seed)
    queues = WriteQueue(preserves=True), WriteQueue(preserves=False)
    for step in range(200):
        key, min_age_s = chance.choice("abcdefghijkl"), chance.choice([0.0, AGED])
        size = chance.choice([1, 20, 70, 150])
        value = None if chance.random() < 0.1 else step
        accepts = chance.random() < 0.95
        if chance.random() < 0.02:
            assert dict(popped(queues[0])) == dict(popped(queues[1]))
        for queue in queues:
            add(queue, key, value, min_age_s, size=size, accepts=accepts)
        assert len(queues[0]) >= len(queues[1])
    assert dict(popped(queues[0])) == dict(popped(queues[1]))


def test_only_a_disk_preserves_replaced_values():
    assert (Tier.preserves, RedisTier.preserves, DiskTier.preserves) == (False, False, True)
