"""Destruction of keys by a provider that hangs, fails or is slow."""

import asyncio
import os
import threading

import pytest
from scripted_tier import ScriptedTier, cache_of

from streaminfer.caching.erasure.erasure import PendingErasure
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
    destruction._latest.result(timeout=PATIENT_S)

    asyncio.run(destruction.make(BEN, PATIENT_S))
    asyncio.run(destruction.make(ANNA, PATIENT_S))

    assert keys.asked == ["anna", "ben"]


def test_late_call_that_failed_is_retried():
    keys = Keys(ConnectionError("gone"))
    destruction = hung(keys)
    keys.may_return.set()
    destruction._latest.exception(timeout=PATIENT_S)

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
