"""Promotions: batches of the background that waited for half of their time, and the ones after them."""

import asyncio
from types import SimpleNamespace

import pytest

from streaminfer.batching.device.promotion import Promotions
from streaminfer.batching.queue._ticket_cy import NEVER

MS = 1_000_000


class Process:
    """CPU time of a process that uses a share of a core, on a loop of virtual time."""

    def __init__(self, loop):
        self.loop = loop
        self.share = 0.0
        self._before_ns, self._since_s = 0.0, loop.time()

    def use(self, share):
        self._before_ns, self._since_s = self.time_ns(), self.loop.time()
        self.share = share

    def time_ns(self):
        return round(self._before_ns + self.share * (self.loop.time() - self._since_s) * 1e9)


class Member:
    """A model of a device, which notes what it is told."""

    def __init__(self):
        self.lowered = []
        self.raised = 0
        self.claim = self

    def set_background(self, is_background):
        self.lowered.append(is_background)

    def raise_running(self):
        self.raised += 1


class Background:
    """Batches of one model, one after another; those without a deadline are promoted after 50 ms."""

    def __init__(self, loop):
        self.loop = loop
        self.process = Process(loop)
        self.member = Member()
        self.counted = []
        self.promotions = Promotions(50 * MS, self.counted.append, self.process.time_ns)

    async def run(self, batches, *, took_s, share, deadline_ns=NEVER):
        self.process.use(share)
        for _ in range(batches):
            batch = SimpleExecution(deadline_ns)
            self.promotions.begin(self.loop, batch, self.member, 0)
            await asyncio.sleep(took_s)
            self.promotions.end(batch, self.member)


class SimpleExecution:
    """What promotions read of a batch."""

    def __init__(self, deadline_ns):
        self.tickets = [SimpleNamespace(deadline_ns=deadline_ns)]


async def test_a_batch_that_ends_soon_is_not_promoted(loop):
    background = Background(loop)

    await background.run(3, took_s=0.04, share=0.1)

    assert (background.member.raised, background.counted) == (0, [])
    assert background.member.lowered == [True] * 3


async def test_a_batch_is_promoted_after_half_of_the_time_until_its_deadline(loop):
    background = Background(loop)

    await background.run(1, took_s=0.04, share=1.0, deadline_ns=90 * MS)
    assert background.member.raised == 0

    await background.run(1, took_s=0.04, share=1.0, deadline_ns=70 * MS)
    assert background.member.raised == 1
    assert background.counted == [background.member]


async def test_batches_are_lowered_on_while_the_foreground_has_the_core(loop):
    background = Background(loop)

    await background.run(4, took_s=0.12, share=1.0)

    assert background.member.raised == 4
    assert background.member.lowered == [True] * 4


async def test_batches_that_other_processes_hold_up_are_lowered_ever_more_rarely(loop):
    background = Background(loop)

    await background.run(150, took_s=0.12, share=0.5)

    begins = background.member.lowered
    lowered = [at for at, is_lowered in enumerate(begins) if is_lowered]
    assert lowered == [0, 2, 5, 10, 19, 36, 69, 102, 135]  # 1, 2, 4, 8, 16, 32 and 32 batches between
    assert background.member.raised == len(lowered)


@pytest.mark.parametrize(("took_s", "share"), [(0.04, 0.5), (0.12, 1.0)], ids=["ends soon", "foreground has the core"])
async def test_the_other_processes_are_forgotten(loop, took_s, share):
    background = Background(loop)

    await background.run(6, took_s=0.12, share=0.5)  # lowered: 0, 2, 5
    await background.run(5, took_s=took_s, share=share)  # lowered: 10 is the next
    background.member.lowered.clear()

    await background.run(3, took_s=0.12, share=0.5)

    assert background.member.lowered == [True, False, True]


async def test_a_model_that_others_do_not_hold_up_is_lowered_beside_one_that_is(loop):
    background = Background(loop)

    other = Background(loop)
    other.promotions, other.process = background.promotions, background.process

    await background.run(2, took_s=0.12, share=0.5)
    await other.run(1, took_s=0.04, share=0.5)

    assert (background.member.lowered, other.member.lowered) == ([True, False], [True])
