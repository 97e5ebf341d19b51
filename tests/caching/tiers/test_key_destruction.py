"""Destruction of keys: once for each erasure, also by a provider that hangs, fails or is slow."""

import asyncio
import json
import os
import threading

import pytest
from scripted_tier import ScriptedTier, cache_of

import streaminfer as si
from streaminfer.caching import RetentionLog
from streaminfer.caching.erasure.erasure import PendingErasure
from streaminfer.caching.tiers import DiskTier
from streaminfer.caching.tiers.encryption import StoredKeys
from streaminfer.caching.tiers.key_destruction import KeyDestruction
from streaminfer.testing import run

ANNA, BEN = PendingErasure("anna", None), PendingErasure("ben", None)
PATIENT_S = 60.0


class Keys:
    """Key provider whose ``destroy`` waits until ``may_return`` is set."""

    def __init__(self, *errors):
        self.is_called = threading.Event()
        self.may_return = threading.Event()
        self.errors = list(errors)
        self.asked = []

    def destroy(self, subject):
        self.asked.append(subject)
        self.is_called.set()
        self.may_return.wait()
        if self.errors:
            raise self.errors.pop()
        return 1


def hung(keys):
    """Return a destruction of Anna's keys that has exceeded its time limit."""
    destruction = KeyDestruction(keys)

    async def attempt(loop):
        with pytest.raises(TimeoutError, match="the key provider took longer than 30 s"):
            await destruction.make(ANNA, 30.0)

    run(attempt)
    assert keys.is_called.wait(PATIENT_S)
    return destruction


@pytest.mark.parametrize("erasing", [ANNA, BEN])
def test_a_provider_that_hangs_is_called_once(erasing):
    """While a call hangs, later attempts fail at once and start no thread, also for other subjects."""
    keys = Keys()
    destruction = hung(keys)
    threads = set(threading.enumerate())

    async def attempt(loop):
        with pytest.raises(TimeoutError, match="has not returned from an earlier call"):
            await destruction.make(erasing, 30.0)
        return loop.time(), set(threading.enumerate()) - threads

    assert (run(attempt), keys.asked) == ((0.0, set()), ["anna"])
    keys.may_return.set()


def test_late_call_that_succeeded_is_not_repeated():
    """A call that succeeded after its time limit is not repeated.

    Otherwise a provider that always exceeds the limit would never be done."""
    keys = Keys()
    destruction = hung(keys)
    keys.may_return.set()
    destruction._calls[ANNA].result(timeout=PATIENT_S)

    asyncio.run(destruction.make(BEN, PATIENT_S))
    asyncio.run(destruction.make(ANNA, PATIENT_S))

    assert keys.asked == ["anna", "ben"]


def test_late_call_that_failed_is_retried():
    keys = Keys(ConnectionError("gone"))
    destruction = hung(keys)
    keys.may_return.set()
    destruction._calls[ANNA].exception(timeout=PATIENT_S)

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(destruction.make(ANNA, PATIENT_S))
    asyncio.run(destruction.make(ANNA, PATIENT_S))

    assert keys.asked == ["anna", "anna"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_waits_for_no_parent_call():
    """A forked process does not wait for a call of its parent, whose thread does not exist in the child."""
    keys = Keys()
    destruction = hung(keys)

    child = os.fork()
    if child == 0:
        status = 1
        try:
            keys.may_return.set()
            asyncio.run(destruction.make(BEN, PATIENT_S))
            status = 0 if keys.asked == ["anna", "ben"] else 2
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    keys.may_return.set()

    assert os.waitstatus_to_exitcode(status) == 0


def test_hung_provider_blocks_neither_writes_nor_stop():
    """If a key provider hangs, its erasure still erases the entries, and retries delay neither writes nor a stop."""
    keys = Keys()

    async def main(loop):
        tier = ScriptedTier(loop.clock)
        tier.keys = keys
        cache = cache_of(loop, tier)
        async with cache:
            await cache.put_through("a", 1, subject="anna")
            erasure = await cache.erase_everywhere(subject="anna")
            await cache.put_through("b", 2, subject="ben")
            await asyncio.sleep(1.5)  # a retry was due after 1 s
            await cache.put_through("c", 3, subject="ben")
        return erasure.failed, list(tier.held), loop.time()

    assert run(main) == ({"disk": "TimeoutError: the key provider took longer than 30 s"}, ["b", "c"], 31.5)
    keys.may_return.set()


# -- once for each erasure ---------------------------------------------------------------------------------------------


class ThreadWithoutDelay:
    """Thread that runs in `start`, so that virtual time does not pass it by."""

    def __init__(self, *, target, name, daemon):
        self.start = target


@pytest.fixture
def keys(monkeypatch):
    """Return a provider that returns at once; ``asked`` has the subjects of its destructions."""
    monkeypatch.setattr("streaminfer.caching.tiers.key_destruction.threading.Thread", ThreadWithoutDelay)
    keys = Keys()
    keys.may_return.set()
    return keys


def sharing_tiers(loop, keys):
    tiers = ScriptedTier(loop.clock), ScriptedTier(loop.clock, "redis", shared=True, on_disk=False)
    for tier in tiers:
        tier.keys = keys
    return tiers


def test_retries_destroy_no_new_keys(keys):
    """An erasure that a tier retries destroys the keys once, because another tier has stored new values since."""

    async def main(loop):
        disk, redis = sharing_tiers(loop, keys)
        redis.erase_error = si.BackendError("unreachable")
        async with cache_of(loop, disk, redis) as cache:
            await cache.erase_everywhere(subject="anna")
            await asyncio.sleep(4.0)  # retried after 1 s and 3 s
            assert cache.tiers.statistics()[1].pending == 1
            redis.erase_error = None
            await asyncio.sleep(30.0)
            assert cache.tiers.statistics()[1].pending == 0

    run(main)
    assert keys.asked == ["anna"]


def test_second_erasure_destroys_keys_again(keys):
    """Each erasure of a subject destroys its keys."""

    async def main(loop):
        async with cache_of(loop, *sharing_tiers(loop, keys)) as cache:
            await cache.erase_everywhere(subject="anna")
            await cache.erase_everywhere(subject="anna")

    run(main)
    assert keys.asked == ["anna", "anna"]


@pytest.mark.parametrize(
    ("subject", "asked"), [("ben", ["anna"]), ("anna", ["anna", "anna"])], ids=["of another", "of the subject"]
)
def test_slow_tier_destroys_only_after_its_own_put(keys, subject, asked):
    """A tier that is busy with a put of the subject destroys the keys again, because the put may have made a new one."""

    async def main(loop):
        disk, redis = sharing_tiers(loop, keys)
        redis.put_s = 1.0
        async with cache_of(loop, disk, redis) as cache:
            put = asyncio.ensure_future(cache.put_through("k", 1, subject=subject))
            await asyncio.sleep(0.5)
            erasure = asyncio.ensure_future(cache.erase_everywhere(subject="anna"))
            await asyncio.sleep(0.1)
            assert keys.asked == ["anna"]  # the disk does not wait for the other tier
            await asyncio.gather(put, erasure)

    run(main)
    assert keys.asked == asked


def test_overrun_put_makes_its_tier_destroy_keys(keys):
    """A tier whose put did not end in time destroys the keys again when it has erased: the put may make a new one."""

    async def main(loop):
        disk, redis = sharing_tiers(loop, keys)
        redis.put_s = 6.0
        async with cache_of(loop, disk, redis) as cache:
            await cache.put_through("k", 1, subject="anna")
            redis.erase_error = si.BackendError("unreachable")
            await cache.erase_everywhere(subject="anna")
            await asyncio.sleep(4.0)
            assert keys.asked == ["anna"]
            redis.erase_error = None
            await asyncio.sleep(60.0)
            assert not any(worker.erasures.pending for worker in cache.tiers.workers)

    run(main)
    assert keys.asked == ["anna", "anna"]


def test_start_destroys_no_new_keys(keys):
    """An erasure of stopped tiers destroys the keys at once, and not again when the tiers start."""

    async def main(loop):
        cache = cache_of(loop, *sharing_tiers(loop, keys))
        assert cache.erase(subject="anna") == 0
        assert keys.asked == ["anna"]
        async with cache:
            await asyncio.sleep(0.1)
            assert [it.pending for it in cache.tiers.statistics()] == [0, 0]

    run(main)
    assert keys.asked == ["anna"]


def test_keys_that_could_not_be_destroyed_go_at_start(keys, caplog):
    """A provider that fails while the tiers are stopped destroys the keys when they start."""
    keys.errors = [OSError("down"), OSError("down")]

    async def main(loop):
        cache = cache_of(loop, *sharing_tiers(loop, keys))
        cache.erase(subject="anna")
        assert keys.asked == ["anna", "anna"]
        async with cache:
            await asyncio.sleep(0.1)
            assert [it.pending for it in cache.tiers.statistics()] == [0, 0]

    run(main)
    assert keys.asked == ["anna"] * 3
    assert "the keys of a subject could not be destroyed yet: down" in caplog.text


def test_owed_erasure_of_two_tiers_destroys_once(tmp_path, monkeypatch):
    """An erasure that two tiers owe from an earlier process destroys the keys once."""
    asked = []
    monkeypatch.setattr(StoredKeys, "destroy", lambda keys, subject: asked.append(subject) or 0)
    stored = StoredKeys(":memory:", master=b"m" * 32)
    tiers = [DiskTier(tmp_path / name, max_bytes=2**20, keys=stored) for name in ("a", "b")]
    places = f"disk {tmp_path / 'a'}", f"disk 2 {tmp_path / 'b'}"
    (tmp_path / "log.owed").write_text("".join(json.dumps([place, "anna", None]) + "\n" for place in places))
    log = RetentionLog(tmp_path / "log", secret=b"s" * 32)

    async def main():
        async with si.EdgeCache(retention=si.Retention(60.0, log=log), tiers=tiers) as cache:
            await cache.erase_everywhere(tag="nothing")  # queued after the owed ones
            assert [it.pending for it in cache.tiers.statistics()] == [0, 0]

    asyncio.run(main())
    stored.close()

    assert asked == ["anna"]
    assert not (tmp_path / "log.owed").exists()
