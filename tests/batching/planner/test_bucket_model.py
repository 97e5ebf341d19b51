"""BucketModel: tables, and the rules by which sizes are explored, compared and sampled."""

import math

import numpy as np
import pytest

from streaminfer.batching.planner.bucket_model import BucketModel
from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
from streaminfer.batching.service_time.service_time import ServiceTime

pytestmark = pytest.mark.uncompiled

MS = 1_000_000
LINE = ServiceTime.affine(0.004, 0.00025)


def bucket(cap=64, service_time=None, *, workers=1, padded=None):
    return BucketModel(
        cap, LearnedServiceTime() if service_time is None else service_time, workers=workers, padded=padded
    )


def run(model, *sizes, seconds=LINE.seconds, factor=1.0):
    """Observe batches that run one after the other from instant 0, and return when the last one ended."""
    now_ns = 0
    for size in sizes:
        duration_ns = round(seconds(size) * factor * 1e9)
        now_ns += duration_ns
        model.observe(size, duration_ns, now_ns, cancelled=False)
    return now_ns


# ---- tables


def test_a_given_service_time_is_exact():
    """A given `ServiceTime` is used unchanged: mean and upper durations are equal, and nothing is learned."""
    model = bucket(service_time=LINE)

    np.testing.assert_array_equal(model.durations, LINE.table_ns(64))
    np.testing.assert_array_equal(model.upper, model.durations)
    assert (model.learns, model.compares, model.size_to_explore(64)) == (False, False, 0)
    assert model.min_duration_ns == model.durations[1]


def test_no_timetable_before_the_first_batch():
    """Before the first batch there is no timetable."""
    model = bucket()

    assert model.timetable is None
    assert model.upper_timetable is None
    assert model.slow_timetable is None
    assert model.learns


def test_outliers_do_not_move_the_slow_timetable():
    """The slow timetable hardly changes if four of 64 batches are outliers instead of three.

    The upper durations, which 19 of 20 batches do not exceed, include outliers if there are four, but not with three.
    """

    def seen(outliers):
        model = bucket()
        for number in range(128):
            run(model, 8, factor=3.0 if number % 64 in outliers else 1.0 + number % 3 / 100)
        return model

    three, four = seen({5, 25, 45}), seen({5, 21, 37, 53})

    assert four.upper[8] > 2.5 * three.upper[8]
    assert four.slow_timetable.ends_ns(0, 8) <= 1.25 * three.slow_timetable.ends_ns(0, 8)


def test_tables_end_at_the_size_of_best_throughput():
    """The planner plans with no size above the best one, but the durations of larger sizes are known."""
    bends = ServiceTime.table({1: 0.001, 8: 0.002, 64: 0.100})
    model = bucket(service_time=bends)

    best = bends.best_batch_size(64)
    assert best < 64
    assert len(model.durations) == len(model.upper) == len(model.steps) == best + 1
    assert model.timetable.cap == best
    assert model.expected_ns(64) == bends.table_ns(64)[64]


def test_tables_follow_the_service_time():
    """A batch that changes the learned service time changes the tables."""
    model = bucket()
    run(model, *[4, 16, 64] * 10)
    before = model.durations

    run(model, 4, 16, 64, factor=2.0)

    assert model.durations is not before
    assert model.durations[16] == pytest.approx(2.0 * before[16], rel=0.1)


@pytest.mark.parametrize("state", ["given", "learned", "padded", "borrowed"])
def test_memory_limit_ends_the_tables(state):
    """A row limit shortens the tables permanently; a larger limit after it changes nothing."""
    sizes = {"padded": lambda size: 1 << (size - 1).bit_length()}
    model = bucket(service_time=LINE if state == "given" else None, padded=sizes.get(state))
    if state == "borrowed":
        model.borrow(bucket(service_time=LINE), 2.0)
    elif state != "given":
        run(model, *[4, 16, 64] * 10)
    before = model.durations

    model.limit_rows(16)
    model.limit_rows(32)

    assert model.cap == model.timetable.cap == model.upper_timetable.cap == 16
    np.testing.assert_array_equal(model.durations, before[:17])
    if state == "learned":
        run(model, *[4, 16] * 10, factor=2.0)
        assert model.timetable.cap == 16
        assert model.size_to_explore(64) <= 16
        assert model.size_to_compare(64) in (0, 8)


@pytest.mark.parametrize("service_time", [None, LINE], ids=["learned", "given"])
def test_limit_below_the_padded_size(service_time):
    """A row limit below the padded size shortens the tables without changing the durations of padded batches.

    A batch of two rows still takes as long as one of eight.
    """
    model = bucket(8, service_time, padded=lambda size: 1 if size == 1 else 8)
    run(model, *[1, 8] * 20)
    before = model.expected_ns(2)

    model.limit_rows(4)

    assert model.cap == 4
    assert model.timetable.cap <= 4
    assert model.expected_ns(2) == before
    assert model.expected_ns(8) == 0


def test_memory_limit_before_the_first_batch():
    """A row limit that is set before the first batch ends the first tables."""
    model = bucket()

    model.limit_rows(4)
    run(model, *[1, 4] * 4)

    assert model.timetable.cap == 4


@pytest.mark.parametrize("workers", [1, 4])
def test_the_next_batch_starts_a_share_later(workers):
    """With several workers, the next batch starts after the duration divided by their number."""
    model = bucket(service_time=LINE, workers=workers)

    np.testing.assert_array_equal(model.steps[1:], model.durations[1:] // workers)


def test_plans_have_a_margin_below_one_percent():
    """Learned durations are planned with a margin of one deviation, at most 1 %."""
    for factors, most in (((1.0,), 0.0011), ((0.7, 1.0, 1.4), 0.01)):
        model = bucket()
        for at in range(200):
            run(model, (4, 16, 64)[at % 3], factor=factors[at // 3 % len(factors)])
        mean = model.service_time.expected_ns(64)[: len(model.durations)]

        margin = model.durations[1:] / mean[1:] - 1
        assert margin == pytest.approx(most, rel=0.1)


def test_the_upper_table_has_no_margin():
    """The upper durations are those of the service time, without a margin."""
    model = bucket()
    run(model, *[4, 16, 64] * 10)

    np.testing.assert_array_equal(model.upper, model.service_time.upper_ns(64)[: len(model.upper)])


@pytest.mark.parametrize(("every", "slow"), [(0, 1.05), (12, 1.05)], ids=["no outliers", "8 % of them"])
def test_outliers_make_no_slow_batch(every, slow):
    """Outliers do not lengthen the durations of slow batches, because no plan can avoid outliers."""
    model = bucket()
    for at in range(300):
        run(model, (1, 8, 64)[at % 3], factor=24.0 if every and at % every == 0 else 8.0)

    assert (model.upper[8] > 2 * model.durations[8]) == bool(every)
    assert model.slow[8] / model.durations[8] <= slow
    assert (model.slow <= model.upper).all()


@pytest.mark.parametrize(("sigma", "sure"), [(0.0, 0.7), (0.5, 0.4)], ids=["exact", "noisy"])
def test_minimum_duration_of_a_single_request(sigma, sure):
    """The minimum duration of a batch of one is 0.7 of the mean, or less if durations scatter more."""
    model, source = bucket(), np.random.default_rng(0)
    for at in range(200):
        run(model, (1, 8, 64)[at % 3], factor=8.0 * math.exp(sigma * source.standard_normal()))

    share = model.min_duration_ns / model.durations[1]
    assert share == pytest.approx(0.7, abs=0.01) if sigma == 0.0 else share <= sure
    if sigma:
        assert share == pytest.approx(math.exp(-2.0 * model.service_time.deviation), abs=0.02)


@pytest.mark.parametrize("size", [1, 3, 8, 9, 16])
def test_a_padded_batch_lasts_as_its_padded_size(size):
    """A batch that is padded to more rows takes as long as a batch of that many rows."""

    def padded(rows):
        return next(size for size in (4, 8, 16) if size >= rows)

    model = bucket(16, LINE, padded=padded)

    assert model.durations[size] == LINE.table_ns(16)[padded(size)]
    assert len(model.durations) == 17


def test_a_padded_batch_teaches_its_padded_size():
    """The duration of a padded batch is learned for the padded size, which the model gets."""
    model = bucket(16, padded=lambda rows: 8 * math.ceil(rows / 8))
    run(model, *[3, 9] * 10, seconds=lambda size: 0.008 if size <= 8 else 0.012)

    assert model.durations[1] == pytest.approx(8 * MS, rel=0.02)
    assert model.durations[10] == pytest.approx(12 * MS, rel=0.02)
    assert model.service_time.trusted == 16


def test_the_best_padded_size_is_a_full_one():
    """The best size fills its padded size, so that no row is padding."""
    model = bucket(
        16,
        ServiceTime.table({4: 0.002, 8: 0.003, 16: 0.020}),
        padded=lambda rows: 4 if rows <= 4 else 8 if rows <= 8 else 16,
    )

    assert len(model.durations) - 1 == 8


def test_borrowed_durations_are_scaled():
    """A bucket without a measured batch uses the scaled durations of another bucket until its first batch."""
    known, unknown = bucket(16), bucket(8)
    run(known, *[1, 4, 16] * 10)

    unknown.borrow(known, 3.0)

    assert unknown.durations[0] == 0
    np.testing.assert_allclose(unknown.durations[1:], 3.0 * known.durations[1:9], rtol=1e-6)
    np.testing.assert_array_equal(unknown.upper, unknown.durations)
    run(unknown, 8)
    assert unknown.durations[8] == pytest.approx(LINE.seconds(8) * 1e9, rel=0.02)


def test_durations_are_borrowed_again_only_if_changed():
    """Durations are borrowed again only if they have changed.

    Each decision borrows them; to build the tables of a dozen buckets would cost more than the rest of the decision.
    """
    known, unknown = bucket(16), bucket(8)
    run(known, *[1, 4, 16] * 10)
    unknown.borrow(known, 3.0)
    before = unknown.timetable

    unknown.borrow(known, 3.0)
    assert unknown.timetable is before

    run(known, *[1, 4, 16] * 10, factor=2.0)
    unknown.borrow(known, 3.0)
    np.testing.assert_allclose(unknown.durations[1:], 3.0 * known.durations[1:9], rtol=1e-6)

    unknown.limit_rows(4)
    unknown.borrow(known, 3.0)
    assert unknown.timetable.cap == 4


# ---- cancelled batches


@pytest.mark.parametrize(
    ("waited_ms", "learned_ms"),
    [(3.0, None), (6.5, 9.0), (30.0, 30.0)],
    ids=["shorter-than-expected", "about-expected", "much-longer"],
)
def test_a_cancelled_batch_is_a_lower_bound(waited_ms, learned_ms):
    """A cancelled batch is a lower bound of the duration of its size.

    The model learns nothing from one that is shorter than expected, 1.5 times the expected duration from one that is
    about as long, and its own duration from one that is longer.
    """
    model = bucket()
    run(model, *[8] * 10)  # 6 ms
    taught = []
    model.service_time.observe = lambda *arguments: taught.append(arguments)

    model.observe(8, round(waited_ms * MS), 10**9, cancelled=True)

    assert [size for size, _, _ in taught] == ([] if learned_ms is None else [8])
    if learned_ms is not None:
        assert taught[0][1] == pytest.approx(learned_ms * MS, rel=0.01)


def test_a_cancelled_batch_beyond_the_cap():
    """A cancelled batch above the largest size is learned too; it can occur after a change of that size."""
    model = bucket(8)
    run(model, *[4, 8] * 10)

    model.observe(32, 100 * MS, 10**9, cancelled=True)

    assert model.service_time.observations == 21


def test_a_first_batch_that_is_cancelled_is_learned():
    """A cancelled batch is learned if it is the first one, because nothing else is known."""
    model = bucket()

    model.observe(4, 50 * MS, 50 * MS, cancelled=True)

    assert model.timetable is not None


# ---- a sample of short batches


def test_a_sample_of_short_batches_is_learned():
    """If batches of a known model take one millisecond, about one in 16 is learned."""
    model = bucket()
    run(model, *[8] * 32, seconds=lambda size: 0.001)
    before = model.service_time.observations

    run(model, *[8] * 160, seconds=lambda size: 0.001)

    assert 9 <= model.service_time.observations - before <= 11


@pytest.mark.parametrize("first", [0, 1], ids=["long-first", "short-first"])
def test_ends_that_are_noticed_in_pairs(first):
    """If a busy loop notices the ends of two batches together, the expected duration is the mean of the two."""
    model = bucket()
    ended_ns = run(model, *[8] * 30, seconds=lambda size: 0.0012)
    durations_ns = (2_200_000, 200_000)

    for number in range(400):
        ended_ns += durations_ns[(number + first) % 2]
        model.observe(8, durations_ns[(number + first) % 2], ended_ns, cancelled=False)

    assert 0.9 * 1_200_000 < model.expected_ns(8) < 1.15 * 1_200_000


def test_a_size_beyond_the_tables_is_learned_at_once():
    """A batch above the largest size, as after a change of that size, is learned at once and is in no mean."""
    model = bucket(8)
    run(model, *[8, 32] * 20, seconds=lambda size: 0.0005)
    before = model.service_time.observations

    run(model, 32, seconds=lambda size: 0.0005)

    assert model.service_time.observations == before + 1


def test_cancelled_short_batches_are_sampled_too():
    """Of cancelled batches no more are learned than of others, or rare long ones, which are cancelled, seem frequent.

    One batch in twenty would take three times as long, and is cancelled after twice the time.
    """
    model = bucket()
    rng = np.random.default_rng(0)
    now_ns = run(model, *[8] * 32, seconds=lambda size: 0.001)
    for is_long in rng.random(8000) < 0.05:
        duration_ns = 2 * MS if is_long else MS
        now_ns += duration_ns
        model.observe(8, duration_ns, now_ns, cancelled=bool(is_long))

    assert model.service_time.observations < 32 + 8000 / 8
    assert model.service_time.residuals.deviation < 0.1
    assert model.expected_ns(8) == pytest.approx(MS, rel=0.15)


@pytest.mark.parametrize(
    ("batches", "seconds"), [(30, 0.004), (16, 0.0002)], ids=["four-milliseconds", "the-first-sixteen"]
)
def test_other_batches_are_learned_one_by_one(batches, seconds):
    """Longer batches are learned one by one, and so are the first sixteen short ones."""
    model = bucket()

    run(model, *[8] * batches, seconds=lambda size: seconds)

    assert model.service_time.observations == batches


@pytest.mark.parametrize("sizes", [[8] * 21, [4] * 4 + [8] * (13 + 16 * 140)], ids=["never", "not-for-128-learned"])
def test_a_size_not_seen_for_long_is_learned_at_once(sizes):
    """A batch of a size that never ran, or not for long, is learned at once, and is no part of the sample."""
    model = bucket()
    run(model, *sizes, seconds=lambda size: 0.001)
    before = model.service_time.observations

    run(model, 4, seconds=lambda size: 0.001)

    assert model.service_time.observations == before + 1


def test_a_model_that_became_fast_is_learned_at_once():
    """Batches that were expected to take four milliseconds or more are learned one by one, however short they are."""
    model = bucket()
    run(model, *[8] * 20, seconds=lambda size: 0.05)
    before = model.service_time.observations

    run(model, 8, 8, seconds=lambda size: 0.0005)

    assert model.service_time.observations == before + 2
    assert model.expected_ns(8) < 1_000_000


def test_batches_are_learned_one_by_one_in_doubt():
    """After an outlier the next batch is learned at once, so that a change is found early."""
    model = bucket()
    ended_ns = run(model, *[8] * 32, seconds=lambda size: 0.001)
    model.observe(8, 20 * MS, ended_ns + 20 * MS, cancelled=False)
    before = model.service_time.observations

    model.observe(8, 20 * MS, ended_ns + 40 * MS, cancelled=False)

    assert model.service_time.in_doubt
    assert model.service_time.observations == before + 1


# ---- exploration and comparison


def test_exploration_quadruples_the_size():
    """As long as larger batches are not slower, up to four times the largest trusted size is explored."""
    model = bucket()
    run(model, 1, 1, seconds=lambda size: 0.005)
    tried = []

    for _ in range(3):
        size = model.size_to_explore(1000)
        tried.append(size)
        run(model, size, size, seconds=lambda size: 0.005)

    assert tried == [4, 16, 64]
    assert model.size_to_explore(1000) == 0


def test_no_more_than_are_queued_is_explored():
    """An exploration batch has at most as many rows as are queued, and more than the largest trusted size."""
    model = bucket()
    run(model, *[1, 8] * 5, seconds=lambda size: 0.005)

    assert model.size_to_explore(20) == 20
    assert model.size_to_explore(8) == 0


def test_slower_sizes_end_exploration():
    """If batches have become slower with their size, no larger size is explored."""
    model = bucket()
    run(model, *[4, 16] * 5, seconds=lambda size: 0.001 * size)

    assert model.size_to_explore(64) == 0


def settled(model, *sizes, rounds=20):
    for _ in range(rounds):
        run(model, *sizes)
    return model


def test_half_the_best_is_compared():
    """When half of the best size has not run for 128 batches, the model proposes it."""
    model = settled(bucket(), 4, 32, 64)
    assert model.size_to_compare(64) == 0

    run(model, *[64] * 126)
    assert model.size_to_compare(64) == 0
    run(model, 64)

    assert model.size_to_compare(64) == 32


def test_smaller_powers_of_two_run_four_times_at_first():
    """At first, each power of two below the replaced batch runs four times, in turn from the largest on."""
    model = settled(bucket(16), 16, rounds=8)
    asked = []
    while size := model.size_to_learn(16):
        asked.append(size)
        run(model, size, seconds=lambda size: 0.0005 * size)

    assert asked == [8, 4, 2] * 4
    assert not settled(bucket(16), 16).size_to_learn(2)
    assert settled(bucket(16), 16).size_to_learn(8) == 4


def test_costly_sizes_run_with_pauses():
    """Sizes that cost much more per row run with pauses; otherwise a queue would build up at the start.

    After a costly batch, a size that seems costly runs 16 batches later, and 128 batches later once it is known.
    """
    model = bucket(16)

    def seconds(size):
        return 0.016 + 0.00025 * size

    run(model, *[16] * 6, 1, 16, seconds=seconds)
    times = {}
    for at in range(600):
        size = model.size_instead_of(16, 16) if model.compared_from <= 16 else 0
        if size:
            model.compare_soon(size)
            times.setdefault(size, []).append(at)
            run(model, 16, seconds=seconds)  # a batch that was sent before the one of that size
        run(model, size or 16, seconds=seconds)

    starts = sorted(at for some in times.values() for at in some[:1])
    assert sorted(times) == [2, 4, 8]
    assert min(np.diff(starts)) >= 14
    assert min(np.diff(times[2])) >= 120
    assert min(np.diff(times[4])) >= 120
    assert sum(map(len, times.values())) <= 12


def test_cheap_size_below_a_costly_one_is_found():
    """The best size of 8 is found although batches from nine rows on take two and a half times as long.

    Per row, 16 rows then cost more than 32, and 8 cost less.
    """
    model = bucket(32)

    def seconds(size):
        return (0.012 + 0.001 * size) * (1.0 if size < 9 else 2.5)

    run(model, *[1, 32] * 4, seconds=seconds)
    for _ in range(60):
        full = len(model.durations) - 1
        size = model.size_instead_of(full, 64) if model.compared_from <= full else 0
        if size:
            model.compare_soon(size)
        run(model, size or full, seconds=seconds)

    assert len(model.durations) - 1 == 8


def test_short_batches_between_full_ones_count():
    """Smaller sizes run four times each, even if a full batch ends the mean that a short batch would be part of."""
    model = settled(bucket(16), 16, rounds=8)
    asked = []
    for _ in range(40):
        if size := model.size_to_learn(15):
            asked.append(size)
            run(model, size, seconds=lambda size: 0.0003 + 0.00029375 * size)
        run(model, 16, seconds=lambda size: 0.005)

    assert sorted(asked) == [2] * 4 + [4] * 4 + [8] * 4


def test_half_of_a_never_full_batch_is_compared():
    """If no batch is full because there are few callers, half of their batch runs after 128 batches without it."""
    model = settled(bucket(16), 2, 4, 8, rounds=8)
    asked = []
    for at in range(300):
        if model.compared_from <= 8 and (size := model.size_instead_of(8, 8)):
            asked.append((at, size))
            run(model, size)
        run(model, 8)

    assert [size for _, size in asked] == [4, 4]
    assert asked[1][0] - asked[0][0] >= 128
    assert len(model.durations) - 1 > 8


def test_half_is_not_compared_if_padded_batches_fill():
    """Half of a batch is not compared while full batches run, also if these are padded and learned as a larger size."""

    def pad(size):
        return next(preferred for preferred in (2, 4, 8, 16) if size <= preferred)

    model = settled(bucket(12, padded=pad), 2, 4, 6, 8, 12, rounds=10)
    run(model, *[12] * 140)
    asked = []
    for _ in range(150):
        if model.compared_from <= 7 and (size := model.size_instead_of(7, 7)):
            asked.append(size)
            run(model, size)
        run(model, 7, 12)  # every other batch is full

    assert not asked


def test_sizes_of_a_prior_are_not_tried_at_first():
    """Sizes whose durations a prior gives are not tried at first."""
    assert settled(bucket(16, LearnedServiceTime(prior=LINE)), 16).size_to_learn(16) == 0


def test_smaller_padded_sizes_run_at_first():
    """If batches are padded, the sizes that run at first are the padded sizes of powers of two."""
    sizes = (4, 12, 16)
    model = settled(bucket(16, padded=lambda rows: next(size for size in sizes if size >= rows)), 16)
    asked = []
    while size := model.size_to_learn(16):
        asked.append(size)
        run(model, size)

    assert asked == [12, 4] * 4


def test_comparison_starts_at_smallest_unknown_size():
    """Batches are compared if they are larger than the smallest power of two that is not known yet.

    At first these are batches of two rows or more; once all smaller powers of two have run, of the best size or more.
    """
    model = settled(bucket(16), 16, rounds=8)
    assert model.compared_from == 2

    run(model, *[2, 4] * 4)
    assert model.size_to_learn(3) == 0
    assert model.compared_from == 9

    run(model, *[8] * 4)
    assert model.size_to_learn(15) == 0
    assert model.compared_from == 16


def test_fixed_service_time_is_never_compared():
    """Batches of a model whose service time is not learned are never compared."""
    model = bucket(service_time=LINE)
    assert (model.compared_from, model.compares) == (64, False)


def test_middle_best_size_is_not_padded_to_a_worse_one():
    """A best size between two padded sizes is replaced by the smaller one if the larger one is worse.

    Within the noise, 18 rows look as good as 16, but the model gets 32 rows for them.
    """
    cliff = ServiceTime.table({4: 0.006, 8: 0.008, 16: 0.012, 32: 0.035})
    model = bucket(32, padded=lambda rows: next(size for size in (4, 8, 16, 32) if size >= rows))
    for factor in [0.9, 1.1] * 20:
        run(model, 4, 8, 16, 32, seconds=cliff.seconds, factor=factor)

    assert 16 < model.service_time.best_batch_size(32) < 32
    assert len(model.durations) - 1 == 16


def test_middle_best_size_is_padded_to_a_better_one():
    """A best size between two padded sizes is replaced by the larger one if that is better.

    For a model whose best size is 20, padded batches of 32 rows are better than batches of 8.
    """
    bends = ServiceTime.table({8: 0.008, 20: 0.010, 32: 0.018})
    model = bucket(32, bends, padded=lambda rows: 8 if rows <= 8 else 32)

    assert bends.best_batch_size(32) == 20
    assert len(model.durations) - 1 == 32


@pytest.mark.parametrize(("per_row_s", "others"), [(0.0003, 0), (0.0, 1)])
def test_comparisons_speed_up_after_one_is_sent(per_row_s, others):
    """The next comparison is due eight batches after a proposal, or one batch after the proposed size is sent.

    If that size seems costly, the batch that was sent before it must end first.
    """
    model = bucket()

    def seconds(size):
        return 0.002 + per_row_s * size

    run(model, *[1, 64] * 4, seconds=seconds)
    assert model.compares
    assert model.size_to_learn(64) == 32
    run(model, *[64] * 7, seconds=seconds)
    assert not model.compares
    run(model, 64, seconds=seconds)
    assert model.compares

    model.compare_soon(32)
    run(model, *[64] * others, seconds=seconds)
    assert not model.compares
    run(model, 32, seconds=seconds)
    assert model.compares


def test_size_that_never_occurs_is_tried_eight_times():
    """A size that batches never reach is tried eight times.

    Limits of cost or bytes leave fewer rows, so the size would otherwise be tried forever.
    """
    model = settled(bucket(16), 2, 4, 8, 10, 16)
    model.service_time._visits[8] = 0
    for _ in range(8):
        assert model.size_to_learn(15) == 8
        model.compare_soon(8)
        run(model, 6)

    assert model.size_to_learn(15) == 0
    run(model, 8)
    assert model.size_to_learn(15) == 8


def test_twice_the_best_is_compared():
    """When twice the best size has not run for long, the model proposes it, if that many requests are queued."""
    bends = ServiceTime.table({1: 0.004, 4: 0.0044, 8: 0.005, 16: 0.020}).seconds
    model = bucket(16)
    for _ in range(20):
        run(model, 4, 8, 16, seconds=bends)
    assert len(model.durations) - 1 == 8
    for _ in range(64):
        run(model, 4, 8, seconds=bends)

    assert model.size_to_compare(15) == 0
    assert model.size_to_compare(16) == 16


def test_larger_size_that_ran_long_ago_is_retried():
    """A size twice as large is proposed if it has not run for 128 batches and that many requests are queued."""
    model = settled(bucket(), 4, 8, 16)
    assert model.size_to_try_again(8, 64) == 0

    run(model, *[8] * 128)

    assert model.size_to_try_again(8, 15) == 0
    assert model.size_to_try_again(8, 64) == 16
    assert not model.compares


def test_larger_size_that_never_ran_is_not_retried():
    """A larger size that never ran is left to exploration, because its duration is a guess."""
    model = settled(bucket(), 4, 8)
    run(model, *[8] * 128)

    assert model.size_to_try_again(8, 64) == 0


def test_an_unknown_bucket_retries_no_larger_size():
    """A bucket whose first batch was not sent retries no larger size.

    This occurs on a shared device, if another model has the turn of that batch.
    """
    known, unknown = bucket(16), bucket(8)
    run(known, *[1, 4, 16] * 10)
    unknown.borrow(known, 3.0)

    unknown.compare_next()

    assert unknown.size_to_try_again(2, 8) == 0


def test_a_larger_padded_size_is_tried_again():
    """A larger size is tried again if no batch of its padded size has run for 128 batches."""
    model = bucket(32, padded=lambda rows: 8 if rows <= 8 else 32)
    settled(model, 8, 32)
    assert model.size_to_try_again(8, 64) == 0

    run(model, *[8] * 128)

    assert model.size_to_try_again(8, 64) == 16


@pytest.mark.parametrize("full", [16, 20, 24, 48])
def test_a_size_is_worth_losses_only_before_it_ran(full):
    """Half of a full batch may make requests late only until it has run once, also if it is no power of two.

    Such a size is learned as the nearest size.
    """
    half = full // 2
    model = bucket(full)
    run(model, *[full] * 16)
    assert model.is_worth_losses(half, full)
    run(model, half, *[full] * 16)

    assert not model.is_worth_losses(half, full)


def test_retrying_a_larger_size_in_vain_costs_little():
    """Trying a larger size again in vain costs little.

    A batch that is cancelled before its end teaches nothing. The size runs again after others have run for 128 times
    its duration.
    """
    model = settled(bucket(), 4, 8, 16)
    ended_ns = run(model, *[8] * 128)

    assert model.size_to_try_again(8, 64) == 16
    model.observe(16, model.expected_ns(16) // 2, ended_ns, cancelled=True)
    run(model, *[8] * 162)
    assert model.size_to_try_again(8, 64) == 0
    run(model, *[8] * 16)

    assert model.size_to_try_again(8, 64) == 16


def test_a_proposed_size_not_sent_is_retried_at_once():
    """A larger size that was proposed while another model had the turn is proposed again."""
    model = settled(bucket(), 4, 8, 16)
    run(model, *[8] * 128)

    assert model.size_to_try_again(8, 64) == 16
    model.compare_next()

    assert model.size_to_try_again(8, 64) == 16


def test_a_larger_size_that_ran_once_is_tried_again():
    """A larger size that ran only once is tried again, because its batch may have been slow by accident.

    No size above the largest that ran is tried.
    """
    model = bucket()
    run(model, 2, seconds=lambda size: 0.1)
    run(model, *[1] * 20)

    assert model.size_to_try_again(1, 64) == 2
    assert model.size_to_try_again(2, 64) == 0


def test_no_more_rows_are_tried_than_a_batch_may_have():
    """If twice a size exceeds the largest size, the largest size is tried."""
    model = bucket(16, LearnedServiceTime(prior=LINE))
    run(model, *[12] * 128)

    assert model.size_to_try_again(12, 64) == 16
    assert model.size_to_try_again(16, 64) == 0


def test_comparisons_are_eight_batches_apart():
    """After a call of `size_to_compare`, eight batches pass until the next comparison."""
    model = settled(bucket(), 4, 64)
    assert model.compares
    model.size_to_compare(64)

    asked = []
    for _ in range(17):
        asked.append(model.compares)
        if asked[-1]:
            model.size_to_compare(64)
        run(model, 64)

    assert [at for at, compares in enumerate(asked) if compares] == [8, 16]


def test_the_next_padded_sizes_are_compared():
    """If batches are padded, the best size is compared with the next smaller and the next larger padded size."""

    def padded(rows):
        return next(size for size in (4, 12, 16) if size >= rows)

    bends = ServiceTime.table({4: 0.004, 12: 0.005, 16: 0.020}).seconds
    model = bucket(16, padded=padded)
    for _ in range(10):
        run(model, 4, 12, 16, seconds=bends)
    assert len(model.durations) - 1 == 12

    run(model, *[12] * 128, seconds=bends)

    assert model.size_to_compare(16) == 4
    run(model, *[4, 12] * 10, seconds=bends)
    assert model.size_to_compare(16) == 16
