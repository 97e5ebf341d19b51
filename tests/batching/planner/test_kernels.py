"""The planner's kernels: optimal where they claim it, with equal results in every compiled form and in plain Python."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_kernels import load_plain

from streaminfer import _compiled_kernels
from streaminfer.batching.planner import kernels

FAR = 2**62
MAX_DROPS = 16
VARIANTS = [_compiled_kernels.load_variant(name) for name in _compiled_kernels.variants()]
CHOOSE = [kernels.choose, *(variant.checked("choose") for variant in VARIANTS)]


@pytest.fixture(scope="module")
def plain_kernels():
    return load_plain(kernels)


def best_of_all(now, deadlines, releases, durations):
    """Return the most requests on time in any schedule, and the earliest finish of the schedules that reach it.

    Unlike the kernel, this recurses over sets of requests, not over prefixes, and assumes no contiguous batches.
    """
    n, cap = len(deadlines), len(durations) - 1

    @functools.cache
    def best(done, time):
        result = (0, -time)
        left = [i for i in range(n) if not done >> i & 1]
        for mask in range(1, 1 << len(left)):
            members = [i for k, i in enumerate(left) if mask >> k & 1]
            if len(members) > cap:
                continue
            finish = max(time, *(releases[i] for i in members)) + durations[len(members)]
            if finish > min(deadlines[i] for i in members):
                continue
            served, end = best(done | sum(1 << i for i in members), finish)
            result = max(result, (served + len(members), end))
        return result

    served, end = best(0, now)
    return served, -end


@st.composite
def problems(draw):
    waiting = draw(st.integers(1, 5))
    expected = draw(st.integers(0, 6 - waiting))
    limit = draw(st.integers(5, 40))
    arrivals = sorted(draw(st.lists(st.integers(-limit, 0), min_size=waiting, max_size=waiting)))
    future = sorted(draw(st.lists(st.integers(1, 30), min_size=expected, max_size=expected)))
    cap = draw(st.integers(1, 4))
    durations = np.cumsum(
        [0, draw(st.integers(1, 15)), *draw(st.lists(st.integers(0, 6), min_size=cap - 1, max_size=cap - 1))]
    )
    deadlines = np.array([at + limit for at in [*arrivals, *future]], np.int64)
    releases = np.array([0] * waiting + future, np.int64)
    return deadlines, releases, waiting, durations.astype(np.int64)


@settings(max_examples=400)
@given(problem=problems())
def test_the_plan_is_the_best_of_all_schedules(problem, plain_kernels):
    deadlines, releases, waiting, durations = problem
    n = len(deadlines)
    most, earliest = best_of_all(0, tuple(deadlines.tolist()), tuple(releases.tolist()), tuple(durations.tolist()))
    for module in (kernels, plain_kernels):
        table = np.empty((n + 1, n + 1), np.int64)
        head, size = module.plan(0, deadlines, releases, waiting, durations, durations, n, 0.0, table)
        if most == 0:
            assert size == 0
            continue
        drops = next(m for m in range(n + 1) if table[m, n] < FAR)
        assert n - drops == most
        assert table[drops, n] == earliest
        if size == 0:
            assert head == -1  # the plan that was read off drops every queued request
            continue
        assert 1 <= size <= min(len(durations) - 1, waiting - head)


@settings(max_examples=200)
@given(problem=problems())
def test_first_batch_of_queued_belongs_to_a_best_plan(problem):
    """If no arrivals are expected, the first batch belongs to a plan with the most requests on time."""
    deadlines, releases, waiting, durations = problem
    deadlines, releases = deadlines[:waiting], releases[:waiting]
    most, _ = best_of_all(0, tuple(deadlines.tolist()), tuple(releases.tolist()), tuple(durations.tolist()))
    head, size = kernels.plan(
        0,
        deadlines,
        releases,
        waiting,
        durations,
        durations,
        waiting,
        0.0,
        np.empty((waiting + 1, waiting + 1), np.int64),
    )
    if most == 0:
        assert size == 0
        return
    finish = int(durations[size])
    assert finish <= deadlines[head]
    rest = tuple(int(d) for i, d in enumerate(deadlines) if not head <= i < head + size)
    after, _ = best_of_all(finish, rest, (0,) * len(rest), tuple(durations.tolist()))
    assert size + after == most


def test_scarce_time_can_cost_a_request(plain_kernels):
    """If time has a price, the plan drops a request whose batch costs more time than the request is worth."""
    # all three on time: the first alone until 10, the others until 22; without the first the others end at 12
    deadlines, durations = np.array([10, 30, 30], np.int64), np.array([0, 10, 12], np.int64)
    for module in (kernels, plain_kernels):
        arguments = (0, deadlines, np.zeros(3, np.int64), 3, durations, durations, 3)
        assert module.plan(*arguments, 0.0, np.empty((4, 4), np.int64)) == (0, 1)
        assert module.plan(*arguments, 0.09, np.empty((4, 4), np.int64)) == (0, 1)  # ten ns are not worth a request
        assert module.plan(*arguments, 0.11, np.empty((4, 4), np.int64)) == (1, 2)


def test_time_has_one_price_if_time_limits_differ(plain_kernels):
    """Time has the same price if the timeouts of the requests differ.

    With the first request, all four are on time, but the last batch ends ten nanoseconds later.
    At the device's capacity, that time serves other requests.
    """
    deadlines, durations = np.array([10, 30, 30, 30], np.int64), np.array([0, 10, 11, 12, 13], np.int64)
    for module in (kernels, plain_kernels):
        for gap_ns, first in ((4.0, (0, 1)), (3.0, (1, 3))):
            limits = np.array([40, 400], np.int64)
            assert module.choose(0, deadlines, durations, durations, limits, gap_ns, False, 3) == first


def test_no_plan_beyond_max_drops():
    deadlines = np.array([5, 5, 5, 100], np.int64)
    durations = np.array([0, 10], np.int64)
    arguments = (0, deadlines, np.zeros(4, np.int64), 4, durations, durations)
    assert kernels.plan(*arguments, 3, 0.0, np.empty((4, 5), np.int64)) == (3, 1)
    assert kernels.plan(*arguments, 2, 0.0, np.empty((4, 5), np.int64)) == (-1, 0)


def test_drop_heads_passes_over_late_requests():
    """`drop_heads` passes over requests that would be late in the largest possible batch."""
    durations = np.array([0, 10, 12, 14], np.int64)
    assert kernels.drop_heads(0, np.array([11, 13, 20, 20, 20], np.int64), 5, durations) == (2, 3)
    assert kernels.drop_heads(0, np.array([11, 13], np.int64), 2, durations) == (1, 1)
    assert kernels.drop_heads(0, np.array([14, 14], np.int64), 2, durations) == (0, 2)
    assert kernels.drop_heads(0, np.array([9, 9], np.int64), 2, durations) == (2, 0)


def test_a_smaller_batch_must_be_worth_its_time():
    """A smaller batch replaces the chosen one if it serves many more requests for its time.

    Batches are padded to four or eight rows, so five rows take as long as eight.
    """
    durations = np.array([0, 10, 10, 10, 10, 20, 20, 20, 20], np.int64)
    deadlines = np.array([12, 15, 20, 22, 22, 22, 22, 25], np.int64)
    price = 8 / 20
    assert kernels.drop_heads(0, deadlines, 8, durations) == (2, 6)
    # 6 requests in 20 are worth 6 - 8, and 4 in 10 are worth 4 - 4: that is more by over a quarter of 6
    assert kernels.worth_its_time(0, deadlines, 2, 6, durations, durations, price) == (0, 4)
    assert kernels.worth_its_time(0, deadlines, 2, 6, durations, durations, 0.0) == (2, 6)
    assert kernels.worth_its_time(0, deadlines, 0, 8, durations, durations, price) == (0, 8)
    # the first request is late even in the smaller batch
    assert kernels.worth_its_time(3, deadlines, 3, 5, durations, durations, price) == (1, 4)


def test_batch_shrinks_only_if_much_better():
    """A batch is made smaller only if that is much better.

    If durations are linear in the size, smaller batches are worse; one bad measurement does not change that.
    """
    line = np.array([0, *range(11, 19)], np.int64)
    bump = line.copy()
    bump[7:] += 2
    deadlines = np.full(8, 100, np.int64)
    for durations in (line, bump):
        assert kernels.worth_its_time(0, deadlines, 0, 8, durations, durations, 8 / durations[8]) == (0, 8)


@pytest.mark.parametrize(("deadline", "available", "size"), [(14, 9, 3), (13, 9, 2), (5, 9, 1), (14, 2, 2)])
def test_the_largest_batch_for_a_deadline(deadline, available, size):
    assert kernels.largest_for(0, deadline, np.array([0, 10, 12, 14], np.int64), available) == size


def test_roll_counts_requests_on_time():
    durations = np.array([0, 10, 12, 14], np.int64)
    deadlines = np.array([12, 12, 30, 45], np.int64)
    releases = np.array([0, 0, 0, 20], np.int64)
    done = np.empty(4, np.bool_)
    # the first two end at 12, the third at 22, and the fourth, which arrives at 20, at 32
    assert kernels.roll(0, deadlines, releases, 0, 2, durations, durations, False, done) == (4, 32)
    # a batch of three ends at 14, too late for two of them
    assert kernels.roll(0, deadlines, releases, 0, 3, durations, durations, False, done) == (2, 30)


choices = st.fixed_dictionaries(
    {
        "deadlines": st.lists(st.integers(20, 300), min_size=1, max_size=40),
        "slopes": st.lists(st.integers(0, 8), min_size=1, max_size=12),
        "limits": st.lists(st.integers(20, 200), min_size=1, max_size=8),
        "gap": st.floats(0.5, 60) | st.just(float("inf")),
        "uniform": st.booleans(),
        "workers": st.integers(1, 4),
    }
)


@settings(max_examples=150)
@given(choice=choices)
def test_compiled_and_plain_choose_alike(choice, plain_kernels):
    durations = np.cumsum([0, 20 - min(choice["slopes"]), *choice["slopes"]]).astype(np.int64)
    deadlines = np.sort(np.array(choice["deadlines"], np.int64)).clip(durations[1])
    limits = np.array(choice["limits"], np.int64)
    arguments = (
        0,
        deadlines,
        durations,
        durations // choice["workers"],
        limits,
        choice["gap"],
        choice["uniform"],
        MAX_DROPS,
    )
    head, size = plain_kernels.choose(*arguments)
    assert [choose(*arguments) for choose in CHOOSE] == [(head, size)] * len(CHOOSE)
    assert 1 <= size <= min(len(durations) - 1, len(deadlines) - head)


def test_long_queues_use_drop_heads_not_a_plan():
    deadlines = np.sort(np.random.default_rng(0).integers(30, 10**6, 10_000))
    durations = np.array([0, 10, 25], np.int64)
    limits = np.array([10**6], np.int64)
    for uniform in (True, False):
        assert kernels.choose(0, deadlines, durations, durations, limits, 5.0, uniform, 16) == kernels.drop_heads(
            0, deadlines, 10_000, durations
        )


def test_with_two_workers_next_batch_starts_early():
    """With two workers the next batch is planned to start before the current one ends."""
    durations = np.array([0, 10, 12], np.int64)
    deadlines = np.array([12, 12, 18, 18], np.int64)
    table = np.empty((5, 5), np.int64)
    # one worker: the first two end at 12 and the others would end at 24; two: they start at 6 and end at 18
    alone = kernels.plan(0, deadlines, np.zeros(4, np.int64), 4, durations, durations, 4, 0.0, table)
    assert table[alone[0], 4] == FAR or alone[0] > 0
    assert kernels.plan(0, deadlines, np.zeros(4, np.int64), 4, durations, durations // 2, 4, 0.0, table) == (0, 2)
    assert table[0, 4] == 12
    done = np.empty(4, np.bool_)
    rolled = kernels.roll(0, deadlines, np.zeros(4, np.int64), 0, 2, durations, durations // 2, True, done)
    assert rolled == (4, 12)
