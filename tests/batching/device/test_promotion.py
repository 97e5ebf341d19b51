"""`Promotions`: background batches that would be late otherwise, and the batches after them."""

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
    """Model of a device that records when its batches are lowered and raised."""

    def __init__(self):
        self.lowered = []
        self.raised = 0
        self.raised_at_ms = []
        self.claim = self.runs = self
        self.running = self.ended = None

    def set_background(self, is_background):
        self.lowered.append(is_background)

    def raise_running(self):
        self.raised += 1
        self.raised_at_ms.append(round(asyncio.get_running_loop().time() * 1e3))

    def running_ns(self):
        return self.running

    def ended_ns(self):
        return self.ended


class Background:
    """Runner of one model's batches, one after another; a batch without a deadline is promoted after 50 ms."""

    def __init__(self, loop):
        self.loop = loop
        self.process = Process(loop)
        self.member = Member()
        self.counted = []
        self.promotions = Promotions(50 * MS, self.counted.append, self.process.time_ns)

    async def run(self, batches, *, took_s, share, deadline_ns=NEVER, size=1):
        self.process.use(share)
        promoted = []
        for _ in range(batches):
            batch = SimpleExecution(deadline_ns, size)
            self.promotions.begin(self.loop, batch, self.member, 0)
            await asyncio.sleep(took_s)
            promoted.append(self.promotions.end(batch, self.member))
        return promoted

    async def learn(self, *cpu_ms, size=1):
        """Run one batch per given CPU time, in milliseconds."""
        for each in cpu_ms:
            self.member.ended = round(each * MS)
            await self.run(1, took_s=0.001, share=1.0, size=size)


class SimpleExecution:
    """Batch with only the attribute that `Promotions` reads."""

    def __init__(self, deadline_ns, size):
        self.tickets = [SimpleNamespace(deadline_ns=deadline_ns)] * size


@pytest.mark.parametrize(
    ("cpu_ms", "used_ms", "raised_at_ms"),
    [
        ((20,), 10, 159),  # needs 10 ms more, so it is promoted 4 · 10 ms before 199
        ((20,), 0, 119),
        ((20,), 30, 191),  # has used more than earlier batches: it needs a tenth of the longest
        ((40,), 0, 100),  # at half of its time, less than 4 · 40 ms are left
        ((2, 20, 10, 10), 10, 174),  # the longest CPU time decays slowly, to 16.2 ms
        ((20,), None, 100),  # its CPU time is unknown
    ],
    ids=["half done", "not begun", "longer", "no time", "longest", "unknown"],
)
async def test_batch_stays_lowered_while_it_can_be_on_time(loop, cpu_ms, used_ms, raised_at_ms):
    """A batch stays at low priority as long as it can still be on time."""
    background = Background(loop)
    await background.learn(*cpu_ms)
    background.member.running = None if used_ms is None else used_ms * MS
    began_ms = round(loop.time() * 1e3)

    await background.run(1, took_s=0.3, share=1.0, deadline_ns=199 * MS)

    assert background.member.raised_at_ms == [pytest.approx(began_ms + raised_at_ms, abs=1)]


async def test_batch_held_up_by_other_processes_is_promoted(loop):
    """A batch that other processes hold up is promoted at its first check, halfway to its deadline."""
    background = Background(loop)
    await background.learn(20)
    background.member.running = 10 * MS
    began_ms = round(loop.time() * 1e3)

    await background.run(1, took_s=0.3, share=0.5, deadline_ns=199 * MS)

    assert background.member.raised_at_ms == [pytest.approx(began_ms + 100, abs=1)]


async def test_cpu_need_of_a_batch_depends_on_its_size(loop):
    background = Background(loop)
    await background.learn(20, size=1)
    background.member.running = 10 * MS
    began_ms = round(loop.time() * 1e3)

    await background.run(1, took_s=0.3, share=1.0, deadline_ns=200 * MS, size=2)

    assert background.member.raised_at_ms == [began_ms + 100]


async def test_batch_that_ends_in_time_is_not_promoted(loop):
    """A batch that ends before it has to be promoted is not promoted."""
    background = Background(loop)
    await background.learn(20)
    background.member.running = 15 * MS

    promoted = await background.run(3, took_s=0.15, share=1.0, deadline_ns=200 * MS)

    assert (background.member.raised, promoted) == (0, [False] * 3)


@pytest.mark.parametrize(
    ("share", "deadline_ns", "expected"),
    [(1.0, 90 * MS, True), (0.5, 90 * MS, True), (1.0, NEVER, False)],
    ids=["foreground", "other processes", "no deadline"],
)
async def test_batch_end_tells_if_promoted_for_its_deadline(loop, share, deadline_ns, expected):
    """The end of a batch tells whether it was promoted because of its deadline."""
    background = Background(loop)

    promoted = await background.run(1, took_s=0.08, share=share, deadline_ns=deadline_ns)

    assert (background.member.raised, promoted) == (1, [expected])


async def test_a_batch_that_ends_soon_is_not_promoted(loop):
    background = Background(loop)

    await background.run(3, took_s=0.04, share=0.1)

    assert (background.member.raised, background.counted) == (0, [])
    assert background.member.lowered == [True] * 3


async def test_batch_is_promoted_halfway_to_its_deadline(loop):
    """A batch is promoted after half of the time until its deadline."""
    background = Background(loop)

    await background.run(1, took_s=0.04, share=1.0, deadline_ns=90 * MS)
    assert background.member.raised == 0

    await background.run(1, took_s=0.04, share=1.0, deadline_ns=70 * MS)
    assert background.member.raised == 1
    assert background.counted == [background.member]


async def test_busy_foreground_does_not_stop_lowering(loop):
    """Batches that only the foreground holds up still start at low priority."""
    background = Background(loop)

    await background.run(4, took_s=0.12, share=1.0)

    assert background.member.raised == 4
    assert background.member.lowered == [True] * 4


async def test_batches_held_up_by_others_are_lowered_rarely(loop):
    """Batches that other processes hold up start at low priority less and less often."""
    background = Background(loop)

    await background.run(150, took_s=0.12, share=0.5)

    begins = background.member.lowered
    lowered = [at for at, is_lowered in enumerate(begins) if is_lowered]
    assert lowered == [0, 2, 5, 10, 19, 36, 69, 102, 135]  # with 1, 2, 4, 8, 16, 32 and 32 batches between them
    assert background.member.raised == len(lowered)


@pytest.mark.parametrize(("took_s", "share"), [(0.04, 0.5), (0.12, 1.0)], ids=["ends soon", "foreground has the core"])
async def test_load_of_other_processes_is_forgotten(loop, took_s, share):
    background = Background(loop)

    await background.run(6, took_s=0.12, share=0.5)  # lowered: 0, 2, 5
    await background.run(5, took_s=took_s, share=share)  # lowered: 10 is the next
    background.member.lowered.clear()

    await background.run(3, took_s=0.12, share=0.5)

    assert background.member.lowered == [True, False, True]


async def test_one_held_up_model_does_not_affect_another(loop):
    """A model that other processes do not hold up is lowered even if another model is held up."""
    background = Background(loop)

    other = Background(loop)
    other.promotions, other.process = background.promotions, background.process

    await background.run(2, took_s=0.12, share=0.5)
    await other.run(1, took_s=0.04, share=0.5)

    assert (background.member.lowered, other.member.lowered) == ([True, False], [True])
