"""LearnedServiceTime: what it expects after which batches, on devices of every shape, through drift and outliers."""

import functools
import math
import random

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.learned_service_time import LearnedServiceTime
from streaminfer.batching.service_time import ServiceTime

LARGEST = 64


def through(points):
    return ServiceTime.table({size: ms / 1e3 for size, ms in points.items()}).seconds


DEVICES = {
    "affine": lambda size: 0.004 + 0.00025 * size,
    "recurrent": through({1: 0.087, 4: 0.2, 8: 0.344, 16: 0.608, 32: 1.184}),  # silero: gains from batching
    "convolution": through({1: 3.04, 4: 14.24, 8: 30.24, 16: 66.24, 32: 157.76, 64: 371.2}),  # BlazeFace: loses
    "padded": lambda size: 0.004 + 0.002 * math.ceil(size / 8),  # to buckets of 8
    "constant": lambda size: 0.005,
    "proportional": lambda size: 0.001 * size,
}


def sizes_under_load(count, seed):
    """Sizes as a batcher makes them: small at first, then up and down with the load."""
    source, size, sizes = random.Random(seed), 1.0, []
    for at in range(count):
        size = min(max(size * math.exp(source.gauss(0.05 if at < 20 else 0.0, 0.4)), 1.0), LARGEST)
        sizes.append(int(size))
    return sizes


def sizes_when_full(count, seed):
    source = random.Random(seed)
    return [LARGEST if source.random() < 0.8 else source.randint(1, LARGEST) for _ in range(count)]


def sizes_when_idle(count, seed):
    source = random.Random(seed)
    return [min(1 + int(source.expovariate(0.25)), LARGEST) for _ in range(count)]


MIXES = {"load": sizes_under_load, "full": sizes_when_full, "idle": sizes_when_idle}
every_device = pytest.mark.parametrize("device", DEVICES)
every_mix = pytest.mark.parametrize("mix", MIXES)


class Live:
    """A learner with the device that it observes and the time that passes."""

    def __init__(self, device, *, sigma=0.0, seed=0, prior=None):
        self.learned = LearnedServiceTime(prior=prior)
        self.seconds = DEVICES[device]
        self.sigma = sigma
        self.source = random.Random(seed + 1000)
        self.now_ns = 0

    def run(self, *sizes, factor=1.0):
        for size in sizes:
            taken_s = self.seconds(size) * factor * math.exp(self.source.gauss(0.0, self.sigma))
            self.now_ns += round(taken_s * 1e9)
            self.learned.observe(size, round(taken_s * 1e9), self.now_ns)
        return self

    def ratio(self, size, factor=1.0):
        """Expected over true."""
        return self.learned.expected_ns(LARGEST)[size] / (self.seconds(size) * factor * 1e9)

    def band(self):
        return (self.learned.upper_ns(LARGEST)[1:] / self.learned.expected_ns(LARGEST)[1:]).max() - 1


# ---- before and after the first batch


def test_nothing_is_known_at_first():
    learned = LearnedServiceTime()
    assert not learned.known
    assert learned.observations == 0
    assert repr(learned) == "LearnedServiceTime(observations=0)"
    for ask in (learned.upper_ns, learned.expected_ns, learned.best_batch_size):
        with pytest.raises(RuntimeError, match="no service time is known"):
            ask(8)
    with pytest.raises(RuntimeError, match="no service time is known"):
        learned.fitted()


@pytest.mark.parametrize("seen", [1, 5, 64])
def test_after_one_batch_larger_ones_look_worth_trying_but_not_free(seen):
    learned = LearnedServiceTime()
    learned.observe(seen, 10_000_000, 10_000_000)
    assert learned.known
    table = learned.expected_ns(LARGEST) / 1e7
    sizes = np.arange(LARGEST + 1)
    np.testing.assert_allclose(table[1:], 0.5 + 0.5 * sizes[1:] / seen, rtol=1e-6)
    assert learned.size_worth_trying(LARGEST) == LARGEST
    assert learned.upper_ns(LARGEST)[seen] <= 1.2e7


@pytest.mark.parametrize("first", [1, 16, 64])
@pytest.mark.parametrize("slower", [1, 10, 100])
@pytest.mark.parametrize("slo_s", [0.025, 0.05])
def test_under_load_batches_grow_to_the_largest_that_is_on_time(first, slower, slo_s):
    live = Live("affine").run(first, factor=slower)
    tried = []
    for _ in range(6):
        feasible = np.flatnonzero(live.learned.upper_ns(LARGEST) <= slo_s * 1e9)
        tried.append(max(int(feasible[-1]), 1))
        live.run(tried[-1])
        assert live.seconds(tried[-1]) <= slo_s
    assert tried[4:] == [LARGEST, LARGEST]


@pytest.mark.parametrize("first", [2, 8, 40])
@pytest.mark.parametrize("slower", [10, 30, 100])
@pytest.mark.parametrize("then", [(2, 2), (8, 8), (1, 3), (12, 5), (40, 40)])
@every_device
def test_a_slow_first_call_is_unlearned_after_two_more(device, first, slower, then):
    live = Live(device).run(first, factor=slower).run(*then)
    for size in then:
        assert live.ratio(size) == pytest.approx(1.0, rel=0.15)


# ---- what it converges to


@every_device
@every_mix
@pytest.mark.parametrize(("count", "error"), [(20, 0.04), (500, 0.002)])
def test_a_steady_device_is_learned_at_the_sizes_that_ran(device, mix, count, error):
    sizes = MIXES[mix](count, seed=1)
    live = Live(device).run(*sizes)
    often = {size for size in sizes if sizes.count(size) > 1}  # what is far from expected is believed the second time
    assert max(abs(live.ratio(size) - 1) for size in often) <= error


@every_mix
def test_the_band_of_a_steady_device_shrinks_to_half_a_percent_within_twenty_batches(mix):
    bands = [Live("affine").run(*MIXES[mix](20, seed)).band() for seed in range(20)]
    assert np.median(bands) <= 0.002
    assert np.quantile(bands, 0.85) <= 0.005
    bands = [Live("affine").run(*MIXES[mix](40, seed)).band() for seed in range(20)]
    assert np.quantile(bands, 0.9) <= 0.005


@every_device
@every_mix
def test_a_jittery_device_is_learned_within_its_noise(device, mix):
    errors = []
    for seed in range(4):
        sizes = MIXES[mix](300, seed)
        live = Live(device, sigma=0.1, seed=seed).run(*sizes)
        errors += [abs(live.ratio(size) - 1) for size in set(sizes)]
    assert np.mean(errors) <= 0.07
    assert np.quantile(errors, 0.95) <= 0.2


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
@every_device
@every_mix
def test_the_upper_estimate_covers_what_it_says(device, mix, sigma):
    covered = []
    for seed in range(3):
        live = Live(device, sigma=sigma, seed=seed)
        for at, size in enumerate(MIXES[mix](300, seed)):
            upper_ns = live.learned.upper_ns(LARGEST)[size] if at else 0
            before_ns = live.now_ns
            live.run(size)
            if at >= 30:
                covered.append(live.now_ns - before_ns <= upper_ns)
    assert 0.90 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@every_device
@every_mix
def test_the_best_size_keeps_the_throughput(device, mix, sigma):
    live = Live(device, sigma=sigma)
    size, sizes = 1, MIXES[mix](300, seed=2)
    for wanted in sizes:
        size = live.learned.size_worth_trying(LARGEST) if live.learned.known else LARGEST
        live.run(min(wanted, size))
    for _ in range(60):  # overload: batches as large as it says
        size = live.learned.size_worth_trying(LARGEST)
        live.run(size)
    best = max(size / live.seconds(size) for size in range(1, LARGEST + 1))
    assert size / live.seconds(size) >= (0.95 if sigma == 0.0 else 0.88) * best


def test_sizes_past_64_share_estimates_without_losing_the_slope():
    source, live = random.Random(0), Live("affine")
    live.run(*(source.randint(1, 1024) for _ in range(400)))
    expected = live.learned.expected_ns(1024)[1:] / 1e9
    np.testing.assert_allclose(expected, [live.seconds(size) for size in range(1, 1025)], rtol=0.01)
    assert live.band() <= 0.005


# ---- drift and outliers


@pytest.mark.parametrize("factor", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("sigma", [0.0, 0.1])
@every_device
@every_mix
def test_a_change_of_speed_and_its_end_are_followed_within_three_batches(device, mix, sigma, factor):
    sizes = MIXES[mix](116, seed=3)
    live = Live(device, sigma=sigma).run(*sizes[:100])
    known = [size for size in sizes[100:] if size in sizes[:100]][:6]
    live.run(*known[:3], factor=factor)
    assert live.ratio(known[0], factor) == pytest.approx(1.0, rel=0.02 + 3 * sigma)
    live.run(*known[3:6])
    assert live.ratio(known[3]) == pytest.approx(1.0, rel=0.02 + 3 * sigma)


@pytest.mark.parametrize("outlier", [0.1, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("sigma", [0.0, 0.02, 0.1])
@every_device
@every_mix
def test_a_single_outlier_moves_no_table_by_a_tenth(device, mix, sigma, outlier):
    for seed in range(3):
        sizes = MIXES[mix](41, seed)
        live = Live(device, sigma=sigma, seed=seed).run(*sizes[:40])
        size = next(size for size in reversed(sizes[:40]) if sizes[:40].count(size) > 1)
        live.sigma = 0.0
        live.run(size)  # whatever came last, the outlier stands alone
        expected, upper = live.learned.expected_ns(LARGEST), live.learned.upper_ns(LARGEST)
        live.run(size, factor=outlier)
        np.testing.assert_allclose(live.learned.expected_ns(LARGEST), expected, rtol=0.1)
        np.testing.assert_allclose(live.learned.upper_ns(LARGEST), upper, rtol=0.1)


def test_two_in_a_row_are_no_outlier():
    live = Live("affine").run(*[4, 8, 20, 50] * 10)
    live.run(8, factor=10.0)
    assert live.ratio(8) == pytest.approx(1.0, rel=0.01)
    live.run(20, factor=10.0)
    assert live.ratio(8, 10.0) == pytest.approx(1.0, rel=0.01)


def test_of_two_that_disagree_the_smaller_counts():
    live = Live("affine").run(*[4, 8, 20, 50] * 10)
    live.run(8, factor=10.0).run(20, factor=2.0)
    assert live.ratio(50, 2.0) == pytest.approx(1.0, rel=0.01)


def test_sizes_never_seen_say_nothing_of_the_speed_until_there_are_three():
    live = Live("affine").run(*[1, 40, 60] * 10)
    live.run(10, factor=4.0).run(20, factor=4.0)
    assert live.ratio(40) == pytest.approx(1.0, rel=0.01)
    live.run(30, factor=4.0)
    assert live.ratio(40, 4.0) == pytest.approx(1.0, rel=0.05)


def test_a_size_that_was_taken_for_a_change_of_speed_is_learned_when_others_take_it_back():
    live = Live("affine").run(*[8, 20] * 20)
    live.learned._known[8].log_time -= 1.0  # as if learned wrongly, however that came about
    for _ in range(2):
        live.run(8, 8, 8, 8)  # an idle spell
        live.run(20, 20, 20, 20)  # and a busy one
    assert live.ratio(8) == pytest.approx(1.0, rel=0.1)
    live.run(8)
    assert live.ratio(20) == pytest.approx(1.0, rel=0.02)


def test_sizes_learned_wrongly_long_ago_do_not_outvote_one_that_is_seen_all_the_time():
    live = Live("affine").run(*[8, *range(32, 64), 64] * 2)
    for size in range(32, 64):
        live.learned._known[size].log_time += 0.7  # as if learned wrongly, however that came about
    live.learned._curve_is_old = True
    assert live.ratio(64) > 1.4
    live.run(*[8, 64] * 60)
    assert live.ratio(8) == pytest.approx(1.0, rel=0.02)
    assert live.ratio(64) == pytest.approx(1.0, rel=0.02)
    assert live.ratio(48) <= 1.3  # of which no more is known than that it takes no longer than 64


@pytest.mark.parametrize(("sigma", "error"), [(0.0, 0.1), (0.1, 0.15)])
def test_through_changes_of_speed_and_load_at_once_the_model_stays_near(sigma, error):
    source, errors = random.Random(0), []
    for seed in range(4):
        live = Live("affine", sigma=sigma, seed=seed).run(*sizes_under_load(100, seed))
        for _ in range(40):
            mix, factor = source.choice(list(MIXES.values())), source.choice([1.0, 1.0, 1.0, 2.0, 0.5])
            for at, size in enumerate(mix(25, source.random())):
                if at >= 5:
                    errors.append(abs(math.log(live.ratio(size, factor))))
                live.run(size, factor=factor * (10.0 if source.random() < 0.01 else 1.0))
    assert np.mean(errors) <= error
    assert np.median(errors) <= error / 2


def test_outliers_apart_or_to_opposite_sides_move_nothing():
    live = Live("affine").run(*[4, 8, 20, 50] * 10)
    for factor in (10.0, 1.0, 10.0, 0.1, 10.0, 1.0):
        live.run(8, factor=factor)
    assert live.ratio(8) == pytest.approx(1.0, rel=0.01)


def test_a_size_that_was_first_seen_slow_is_corrected_at_its_next_visits():
    live = Live("affine").run(*[4, 8] * 10)
    live.run(16, factor=10.0).run(8)
    assert live.ratio(16) < 2.0
    live.run(16)
    assert live.ratio(16) == pytest.approx(1.0, rel=0.05)


def test_a_size_that_alone_became_slower_is_learned_and_the_others_stay():
    live = Live("affine").run(*[4, 8, 16] * 20)
    for _ in range(2):
        live.run(4).run(8, factor=1.5)
    assert live.ratio(8, 1.5) == pytest.approx(1.0, rel=0.15)
    live.run(4, 16, 4, 16)
    assert live.ratio(4) == pytest.approx(1.0, rel=0.01)
    assert live.ratio(16) >= 0.99


def test_a_slow_ramp_is_followed():
    live = Live("affine").run(*sizes_under_load(60, seed=0))
    for at in range(100):
        live.run(1 + at % 20, factor=1.01**at)
    assert live.ratio(10, 1.01**99) == pytest.approx(1.0, rel=0.05)


def test_after_idle_time_the_level_is_less_certain():
    moved = []
    for idle_ns in (0, 600 * 10**9):
        live = Live("affine", sigma=0.05).run(*[8] * 60)
        before = live.learned.fitted().seconds(8)
        live.sigma = 0.0
        live.now_ns += idle_ns
        live.run(8, factor=1.08 * before / live.seconds(8))
        moved.append(live.learned.fitted().seconds(8) / before - 1)
    assert 0 <= moved[0] < 0.04 < moved[1]


# ---- priors


def test_a_prior_is_what_is_expected_at_first():
    prior = ServiceTime.affine(0.004, 0.00025)
    learned = LearnedServiceTime(prior=prior)
    assert learned.known
    np.testing.assert_array_equal(learned.expected_ns(LARGEST), prior.table_ns(LARGEST))
    assert learned.size_worth_trying(LARGEST) == LARGEST
    assert learned.fitted().seconds(7) == pytest.approx(prior.seconds(7))


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, 30.0])
def test_a_prior_of_the_right_shape_needs_two_batches_for_the_speed(factor):
    live = Live("affine", prior=ServiceTime.affine(0.004, 0.00025)).run(3, 20, factor=factor)
    for size in (1, 3, 10, 20, LARGEST):
        assert live.ratio(size, factor) == pytest.approx(1.0, rel=0.02)


def test_a_slow_first_call_does_not_move_a_prior():
    live = Live("affine", prior=ServiceTime.affine(0.004, 0.00025)).run(3, factor=30.0)
    assert live.ratio(20) == pytest.approx(1.0, rel=0.01)


def test_a_prior_of_the_wrong_shape_is_unlearned():
    live = Live("affine", prior=ServiceTime.affine(0.0, 0.001)).run(*sizes_under_load(200, seed=1))
    for size in (1, 2, 8, 20, 40):
        assert live.ratio(size) == pytest.approx(1.0, rel=0.05)


def test_what_was_learned_goes_on_in_the_next_process(tmp_path):
    live = Live("padded").run(*sizes_under_load(200, seed=1))
    live.learned.fitted().save(tmp_path / "learned.json")
    again = LearnedServiceTime(prior=ServiceTime.load(tmp_path / "learned.json"))
    np.testing.assert_allclose(again.expected_ns(LARGEST), live.learned.expected_ns(LARGEST), rtol=1e-6)


# ---- what always holds

batches = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 10**12), st.integers(0, 10**10)), max_size=60)
priors = st.none() | st.builds(ServiceTime.affine, st.floats(1e-6, 1.0), st.floats(0.0, 0.1))


@given(batches, priors, st.integers(1, 300))
def test_tables_are_positive_nondecreasing_and_the_upper_above_the_centre(observed, prior, largest):
    learned, now_ns = LearnedServiceTime(prior=prior), 0
    version, tables = learned.version, None
    for size, duration_ns, gap_ns in observed:
        now_ns += gap_ns
        learned.observe(size, duration_ns, now_ns)
        expected, upper = learned.expected_ns(largest), learned.upper_ns(largest)
        assert expected.shape == upper.shape == (largest + 1,)
        assert expected.dtype == upper.dtype == np.int64
        assert expected[0] == upper[0] == 0
        assert expected[1] >= 1
        assert (np.diff(expected) >= 0).all()
        assert (np.diff(upper) >= 0).all()
        assert (upper >= expected).all()
        assert 1 <= learned.size_worth_trying(largest) <= largest
        if learned.version == version:
            assert tables is not None or prior is not None
            if tables is not None:
                assert expected is tables[0]
                assert upper is tables[1]
        version, tables = learned.version, (expected, upper)
    assert learned.observations == len(observed)
    if observed:
        fitted = learned.fitted()
        np.testing.assert_allclose(fitted.table_ns(largest), learned.expected_ns(largest), rtol=1e-9, atol=1)


@given(batches, priors)
def test_asking_changes_nothing(observed, prior):
    asked, silent = LearnedServiceTime(prior=prior), LearnedServiceTime(prior=prior)
    for size, duration_ns, now_ns in observed:
        asked.observe(size, duration_ns, now_ns)
        silent.observe(size, duration_ns, now_ns)
        asked.upper_ns(32)
        asked.size_worth_trying(7)
        asked.fitted()
        repr(asked)
    assert asked.version == silent.version
    if observed:
        np.testing.assert_array_equal(asked.upper_ns(300), silent.upper_ns(300))
        assert asked.fitted() == silent.fitted()


def test_the_version_rests_when_there_is_nothing_new():
    live = Live("affine").run(*sizes_under_load(200, seed=0))
    version, upper = live.learned.version, live.learned.upper_ns(LARGEST)
    live.run(*[4, 9] * 20)
    assert live.learned.version == version
    assert live.learned.upper_ns(LARGEST) is upper
    live.run(4, 9, factor=1.1)
    assert live.learned.version > version
    assert live.learned.upper_ns(LARGEST)[9] > upper[9]
    with pytest.raises(ValueError):
        upper[1] = 0


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((0, 1, 1), ValueError, "size: expected a whole number ≥ 1, got 0"),
        ((2.0, 1, 1), TypeError, "size: expected"),
        ((True, 1, 1), TypeError, "size: expected"),
        ((1, -1, 1), ValueError, "duration_ns: expected a whole number ≥ 0, got -1"),
        ((1, 0.5, 1), TypeError, "duration_ns: expected"),
        ((1, 1, 1.0), TypeError, "now_ns: expected"),
    ],
)
def test_bad_observations_are_named(arguments, error, says):
    learned = LearnedServiceTime()
    with pytest.raises(error, match=says):
        learned.observe(*arguments)
    assert learned.observations == 0


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: LearnedServiceTime(prior=0.1), TypeError, "prior: expected a ServiceTime or None"),
        (lambda: Live("affine").run(1).learned.upper_ns(0), ValueError, "max_batch_size: expected"),
        (lambda: Live("affine").run(1).learned.expected_ns(2.5), TypeError, "max_batch_size: expected"),
    ],
)
def test_bad_arguments_are_named(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_whole_numbers_of_other_types_are_taken():
    plain, numpy = LearnedServiceTime(), LearnedServiceTime()
    plain.observe(4, 1000, 5)
    numpy.observe(np.int64(4), np.int64(1000), np.int64(5))
    np.testing.assert_array_equal(plain.upper_ns(8), numpy.upper_ns(8))


def test_repr_tells_what_is_known():
    live = Live("affine").run(*[4, 8] * 20)
    assert repr(live.learned) == "LearnedServiceTime(observations=40, sizes=2, band=+0.10%)"


def test_plot():
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    live = Live("affine").run(*[4, 8] * 20)
    ax = live.learned.plot()
    (line,) = ax.lines
    expected = functools.partial(live.learned.expected_ns, len(line.get_xdata()))
    np.testing.assert_allclose(line.get_ydata(), expected()[1:] / 1e9)
    band, points = ax.collections
    np.testing.assert_allclose(points.get_offsets(), [(4, 0.005), (8, 0.006)], rtol=1e-3)
    assert band.get_datalim(ax.transData).height > 0
    prior = LearnedServiceTime(prior=ServiceTime.affine(0.004, 0.00025))
    assert prior.plot(ax) is ax
    plt.close("all")
