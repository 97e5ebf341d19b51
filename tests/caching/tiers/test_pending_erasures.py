"""Erasures that a tier has not carried out: their order, the entries that they match, and the cost of many of them."""

import asyncio
import sys
from collections import Counter

import hypothesis.strategies as st
from hypothesis import given

import streaminfer as si
from streaminfer.caching.erasure.erasure import PendingErasure
from streaminfer.caching.tiers import Entry
from streaminfer.caching.tiers.pending_erasures import PendingErasures
from streaminfer.testing import run
from tests.support.scripted_tier import ScriptedTier

SELECTIONS = [("anna", None), ("bert", None), (None, "anna"), (None, "red")]
ENTRIES = [
    Entry(value=1, stored_ns=0, subject=subject, tags=tags)
    for subject in (None, "anna", "bert")
    for tags in ((), ("anna",), ("red", "blue"))
]


def erasure(selection, *, armed=True):
    erasing = PendingErasure(*selection, ["disk"])
    if armed:
        erasing.arm(0)
    return erasing


@given(st.lists(st.tuples(st.sampled_from(["add", "fail", "end"]), st.integers(0, 9)), max_size=40))
def test_order_and_matches_equal_a_plain_list_model(steps):
    pending, untried, failed, made = PendingErasures(), [], [], []
    for what, number in steps:
        if what == "add" or not made:
            selection = SELECTIONS[number % len(SELECTIONS)]
            erasing = erasure(selection)
            failed = [it for it in failed if (it.subject, it.tag) != selection]
            untried.append(erasing)
            made.append(erasing)
            pending.add(erasing)
            continue
        erasing = made[number % len(made)]  # also an erasure that has ended, or that a later one has replaced
        if what == "end":
            untried, failed = [[it for it in those if it is not erasing] for those in (untried, failed)]
            pending.end(erasing)
        else:
            if erasing in untried:
                untried.remove(erasing)
                failed = [it for it in failed if it.selection != erasing.selection] + [erasing]
            elif erasing in failed:
                failed.append(failed.pop(failed.index(erasing)))
            pending.fail(erasing)

        assert Counter(pending.pending) == Counter(untried + failed)
        assert pending.next(0.0, may_retry=False) is next(iter(untried), None)
        assert pending.next(0.0, may_retry=True) is next(iter(untried + failed), None)
        assert [pending.matches(it) for it in ENTRIES] == [
            any(each.matches(it.subject, it.tags) for each in pending.pending) for it in ENTRIES
        ]


def test_unarmed_erasure_does_not_delay_others():
    pending, unarmed, armed = PendingErasures(), erasure(SELECTIONS[0], armed=False), erasure(SELECTIONS[1])
    pending.add(unarmed)
    pending.add(armed)

    assert pending.next(0.0, may_retry=True) is armed


def test_held_erasure_is_skipped_until_its_instant():
    """An erasure that a hold forbids is skipped until the given instant."""
    pending, held, other = PendingErasures(), erasure(SELECTIONS[0]), erasure(SELECTIONS[1])
    for erasing in (held, other):
        pending.add(erasing)
        pending.fail(erasing)
    pending.hold(held, 30.0)

    assert pending.held_until() == 30.0
    assert (pending.next(29.0, may_retry=True), pending.next(30.0, may_retry=True)) == (other, held)
    pending.add(erasure(SELECTIONS[0]))  # replaces the held erasure
    assert pending.held_until() is None


def test_failed_erasures_add_no_cost_to_later_work():
    """The cost of an erasure and a write does not grow with the number of failed erasures.

    A tier that fails for hours, while tags are invalidated all the time, takes no more time of the event loop.
    """

    class Model:
        fingerprint = "1"

        async def call(self, request):
            return si.Response(request.inputs)

    async def main(loop):
        disk = ScriptedTier(loop.clock)
        disk.erase_error = OSError("down")

        async def calls_of(name):
            """Count the Python calls of an erasure, its attempt, and a response that is stored."""
            calls = 0

            def count(_frame, event, _argument):
                nonlocal calls
                calls += event == "call"

            sys.setprofile(count)
            try:
                cache.erase(tag=name)
                await asyncio.sleep(0.001)
                await service(1.0, key=name)
                await asyncio.sleep(0.001)
            finally:
                sys.setprofile(None)
            return calls

        cache = si.EdgeCache(maxsize=100, tiers=[disk])
        async with si.Stack(cache, Model(), clock=loop.clock) as service:
            await calls_of("first")
            few = await calls_of("few")
            for number in range(500):
                cache.erase(tag=f"tag {number}")
            await asyncio.sleep(0.01)
            many = await calls_of("many")
            assert cache.tiers.statistics()[0].pending == 503
            disk.erase_error = None
            await asyncio.sleep(60.0)
            return few, many, cache.tiers.statistics()[0].pending

    few, many, pending = run(main)
    assert many <= few + 20
    assert pending == 0
