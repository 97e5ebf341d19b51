"""LearnedServiceTime: its expected durations on devices of every shape, with noise, outliers and changes."""

import math
import random

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
from streaminfer.batching.service_time.service_time import ServiceTime

LARGEST = 64


def through(points):
    return ServiceTime.table({size: ms / 1e3 for size, ms in points.items()}).seconds


DEVICES = {
    "affine": lambda size: 0.004 + 0.00025 * size,
    "silero": through({1: 0.087, 4: 0.2, 8: 0.344, 16: 0.608, 32: 1.184}),  # gains from batching
    "blazeface": through({1: 3.04, 4: 14.24, 8: 30.24, 16: 66.24, 32: 157.76, 64: 371.2}),  # loses
    "padded": lambda size: 0.004 + 0.002 * math.ceil(size / 8),  # to buckets of 8
    "constant": lambda size: 0.005,
    "proportional": lambda size: 0.001 * size,
}


def sizes_under_load(count, seed):
    """Return batch sizes like those of a batcher: small at first, then up and down with the load."""
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
    """Device with a `LearnedServiceTime` that observes it."""

    def __init__(self, device="affine", *, sigma=0.0, seed=0, prior=None):
        self.learned = LearnedServiceTime(prior=prior)
        self.seconds = DEVICES[device]
        self.sigma = sigma
        self.source = random.Random(seed + 1000)

    def draw(self, size, factor=1.0):
        return round(self.seconds(size) * factor * math.exp(self.source.gauss(0.0, self.sigma)) * 1e9)

    def run(self, *sizes, factor=1.0):
        for size in sizes:
            self.learned.observe(size, self.draw(size, factor), 0)
        return self

    def ratio(self, size, factor=1.0):
        """Return the expected duration, divided by the true one."""
        return self.learned.expected_ns(LARGEST)[size] / (self.seconds(size) * factor * 1e9)

    def errors(self, sizes, factor=1.0):
        """Return the relative error of the expected duration, by size."""
        return {size: abs(self.ratio(size, factor) - 1.0) for size in set(sizes)}


# ---- before and after the first batch


def test_nothing_is_known_at_first():
    """Before the first batch no duration is known, and methods that need one raise an error."""
    learned = LearnedServiceTime()

    assert (learned.known, learned.observations, learned.in_doubt, learned.trusted) == (False, 0, False, 0)
    for ask in (learned.upper_ns, learned.expected_ns, learned.best_batch_size):
        with pytest.raises(RuntimeError, match="no service time is known"):
            ask(8)
    with pytest.raises(RuntimeError, match="no service time is known"):
        learned.fitted()
    with pytest.raises(RuntimeError, match="no service time is known"):
        learned.plot()


@pytest.mark.parametrize("seen", [1, 4, 64])
def test_larger_batches_are_tried_after_one(seen):
    """After one batch the largest size looks best, so that it is tried."""
    learned = Live().run(seen).learned

    assert learned.known
    assert learned.best_batch_size(LARGEST) == LARGEST
    assert learned.expected_ns(LARGEST)[seen] == pytest.approx(DEVICES["affine"](seen) * 1e9, rel=0.01)


@pytest.mark.parametrize("then", [(2, 2), (8, 8), (40, 40)], ids=str)
@every_device
def test_a_slow_first_call_is_unlearned(device, then):
    """A first batch that took thirty times as long is forgotten after two more."""
    live = Live(device).run(then[0], factor=30.0).run(*then)

    assert live.ratio(then[-1]) == pytest.approx(1.0, rel=0.2)


# ---- convergence


@pytest.mark.parametrize(
    ("device", "mean", "worst"),
    [
        ("affine", 0.002, 0.01),
        ("silero", 0.003, 0.015),
        ("blazeface", 0.025, 0.08),
        ("padded", 0.05, 0.2),  # sizes about a step share an estimate
        ("constant", 0.002, 0.01),
        ("proportional", 0.002, 0.01),
    ],
)
@every_mix
@pytest.mark.parametrize("count", [20, 100, 500])
def test_a_steady_device_is_learned(device, mean, worst, mix, count):
    """The durations of a steady device are learned at the sizes that ran more than once."""
    sizes = MIXES[mix](count, seed=1)
    live = Live(device).run(*sizes)

    errors = live.errors(size for size in sizes if sizes.count(size) > 1)

    assert np.mean(list(errors.values())) <= mean
    assert max(errors.values()) <= worst


@every_device
@every_mix
def test_a_noisy_device_is_learned_within_its_noise(device, mix):
    """If durations scatter by 10 %, the expected ones are within about 10 % of the true ones."""
    errors = []
    for seed in range(4):
        sizes = MIXES[mix](300, seed)
        live = Live(device, sigma=0.1, seed=seed).run(*sizes)
        errors += live.errors(size for size in sizes if sizes.count(size) > 2).values()

    assert np.mean(errors) <= 0.08
    assert np.quantile(errors, 0.9) <= 0.2


@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.3])
@every_device
@every_mix
def test_the_upper_table_covers_19_of_20(device, mix, sigma):
    """About 95 % of the batches take no longer than the upper table says."""
    covered = []
    for seed in range(2):
        live = Live(device, sigma=sigma, seed=seed)
        for at, size in enumerate(MIXES[mix](300, seed)):
            duration_ns = live.draw(size)
            if at >= 30:
                covered.append(duration_ns <= live.learned.upper_ns(LARGEST)[size])
            live.learned.observe(size, duration_ns, 0)

    assert 0.85 <= np.mean(covered) <= 0.98


@pytest.mark.parametrize("sigma", [0.1, 0.4])
def test_the_mean_matches_lognormal_noise(sigma):
    """Under lognormal noise, the mean exceeds the median by the factor exp(sigma² / 2)."""
    above, ratios = [], []
    for seed in range(10):
        live = Live(sigma=sigma, seed=seed).run(*[4, 8, 16, 32] * 50)
        above.append(live.learned.expected_ns(LARGEST)[16] / (live.learned.fitted().seconds(16) * 1e9))
        ratios.append(live.ratio(16, math.exp(sigma**2 / 2)))

    assert np.mean(above) == pytest.approx(math.exp(sigma**2 / 2), rel=0.25 * sigma)
    assert np.mean(above) > 1.0
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.5 * sigma)


def test_outliers_count_in_the_mean():
    """If one batch of twenty takes three times as long, the mean rises by a tenth and the median stays."""
    live = Live(sigma=0.02)
    for at in range(400):
        live.run((4, 8, 16, 32)[at % 4], factor=3.0 if at % 20 == 7 else 1.0)

    assert live.learned.fitted().seconds(16) / live.seconds(16) == pytest.approx(1.0, abs=0.03)
    assert live.ratio(16) == pytest.approx(1.1, abs=0.05)


@pytest.mark.parametrize("sigma", [0.0, 0.1])
@every_device
@every_mix
def test_the_best_size_keeps_the_throughput(device, mix, sigma):
    """Under overload, batches of the best size have nearly the best throughput."""
    live, size = Live(device, sigma=sigma), LARGEST
    for wanted in MIXES[mix](300, seed=2):
        live.run(min(wanted, size))
        size = live.learned.best_batch_size(LARGEST)
    for _ in range(60):
        live.run(size)
        size = live.learned.best_batch_size(LARGEST)

    best = max(size / live.seconds(size) for size in range(1, LARGEST + 1))
    assert size / live.seconds(size) >= (0.95 if sigma == 0.0 else 0.7) * best


@pytest.mark.parametrize(("sigma", "best"), [(0.0, 8), (0.2, LARGEST)], ids=["exact", "noisy"])
def test_alike_sizes_are_equally_good(sigma, best):
    """Of sizes whose throughputs differ by less than the noise, the largest is best if batching gains at all."""
    live = Live()
    live.seconds = ServiceTime.table({1: 0.004, 8: 0.008, 64: 0.068}).seconds  # 6 % worse at 64
    live.sigma = sigma
    live.run(*[1, 8, 64] * 40)
    if sigma:
        assert live.learned.deviation > 0.1
        assert live.learned.best_batch_size(LARGEST) == best
    else:
        assert live.learned.best_batch_size(LARGEST) <= best


def test_many_batches_separate_similar_sizes():
    """If durations scatter by a fifth, two sizes count as different only after many batches of each."""
    live = Live()
    live.seconds = ServiceTime.table({1: 0.004, 8: 0.008, 64: 0.075}).seconds  # 15 % worse at 64

    def best_after(times, *sizes):
        for factor in [0.8, 1.25] * times:
            live.run(*sizes, factor=factor)
        return live.learned.best_batch_size(LARGEST)

    best_after(30, 1)
    assert live.learned.deviation > 0.18
    assert best_after(2, 8, 64) == LARGEST
    assert best_after(20, 8, 64) <= LARGEST // 2


@pytest.mark.parametrize("sigma", [0.0, 0.2, 0.4])
def test_a_model_without_gain_has_small_batches(sigma):
    """If a model gains nothing from batching, its best size is small at any noise.

    A larger batch would only make its first rows wait.
    """
    live = Live(sigma=sigma)
    live.seconds = ServiceTime.table({1: 0.005, 2: 0.010, 8: 0.044, 64: 0.420}).seconds
    live.run(*[1, 2, 8, 64] * 30)

    assert live.learned.best_batch_size(LARGEST) <= 4


def test_two_settled_sizes_say_whether_batching_gains():
    """A model counts as one without gain from batching only after two sizes have settled.

    A single slow batch, perhaps a cold one, rules no size out.
    """
    live = Live(sigma=0.0)
    live.seconds = ServiceTime.table({1: 0.005, 64: 0.320}).seconds
    live.run(1, 1, 64)

    assert live.learned.gains_up_to == math.inf
    assert live.run(*[1, 64] * 4).learned.gains_up_to < 8


def test_at_most_a_quarter_is_alike():
    """However much durations scatter, a size with 40 % less throughput is not as good."""
    live = Live(sigma=0.5)
    live.seconds = ServiceTime.table({8: 0.008, 64: 0.107}).seconds
    live.run(*[8, 64] * 60)

    assert live.learned.deviation > 0.4
    assert live.learned.best_batch_size(LARGEST) < LARGEST


@pytest.mark.parametrize(("device", "flat"), [("constant", True), ("affine", False), ("proportional", False)], ids=str)
def test_flat_means_no_slower_than_a_quarter(device, flat):
    """A size is flat if its batches take no longer, except for noise, than those of a quarter of the size."""
    learned = Live(device).run(*[4, 16, 64] * 10).learned

    assert learned.flat_up_to(64) is flat
    assert learned.flat_up_to(1)


def test_flat_does_not_look_at_half():
    """A size is not flat if durations rise between a quarter and half of it."""
    live = Live(sigma=0.1)
    live.seconds = {16: 0.005, 32: 0.010, 64: 0.010}.__getitem__

    assert not live.run(*[16, 32, 64] * 20).learned.flat_up_to(64)


def test_flat_allows_for_the_noise():
    """A size is flat if noise can explain why its batches take longer than those of a quarter."""
    live = Live(sigma=0.4)
    live.seconds = {16: 0.010, 64: 0.015}.__getitem__
    learned = live.run(*[16, 64] * 40).learned
    slope = learned.fitted().seconds(64) / learned.fitted().seconds(16)

    assert 1.3 < slope < 1.0 + 2.0 * learned.deviation
    assert learned.flat_up_to(64)


def test_sizes_past_64_keep_the_slope():
    """Sizes above 64 share estimates, but their expected durations keep the slope."""
    source, live = random.Random(0), Live()
    live.run(*(source.randint(1, 1024) for _ in range(400)))

    expected = live.learned.expected_ns(1024)[1:] / 1e9

    np.testing.assert_allclose(expected, [live.seconds(size) for size in range(1, 1025)], rtol=0.02)


def test_fitted_extends_beyond_measured_sizes():
    """The fitted service time continues its slope above the largest measured size."""
    live = Live().run(*[8, 64] * 10)

    assert live.learned.fitted().seconds(200) == pytest.approx(live.seconds(200), rel=0.02)


# ---- changes and outliers


@pytest.mark.parametrize("factor", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("sigma", [0.0, 0.05])
@every_device
@every_mix
def test_a_change_of_speed_and_its_end_are_followed(device, mix, sigma, factor):
    """A change of speed is followed within five batches, and so is its end."""
    sizes = MIXES[mix](116, seed=3)
    live = Live(device, sigma=sigma).run(*sizes[:100])
    known = [size for size in sizes[100:] if size in sizes[:100]]

    live.run(*known[:5], factor=factor)
    assert live.ratio(known[4], factor) == pytest.approx(1.0, rel=0.1)
    live.run(*known[5:10])

    assert live.ratio(known[9]) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("batches", [3, 10, 40, 200])
@every_device
@every_mix
def test_a_slow_second_leaves_no_trace(device, mix, batches):
    """Ten batches after a device was four times slower, all sizes known before are within 20 % of the truth."""
    sizes = MIXES[mix](200 + batches + 10, seed=5)
    before = sizes[:200]
    live = Live(device, sigma=0.05).run(*before).run(*sizes[200 : 200 + batches], factor=4.0)

    live.run(*sizes[200 + batches :])

    errors = live.errors(size for size in before if before.count(size) >= 4)
    assert max(errors.values()) <= 0.2


@pytest.mark.parametrize("outlier", [0.1, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("sigma", [0.0, 0.02, 0.1])
@every_mix
def test_an_outlier_moves_no_table_much(mix, sigma, outlier):
    """A single outlier moves no table entry of a size that ran by more than a tenth, although the mean counts it."""
    for seed in range(3):
        sizes = MIXES[mix](80, seed)
        live = Live(sigma=sigma, seed=seed).run(*sizes)
        size = next(size for size in reversed(sizes) if sizes.count(size) > 5)
        live.sigma = 0.0
        live.run(size)  # whatever came last, the outlier is not part of a streak
        expected, upper = live.learned.expected_ns(LARGEST), live.learned.upper_ns(LARGEST)

        live.run(size, factor=outlier)

        ran = [size for size in set(sizes) if sizes.count(size) >= 4]
        np.testing.assert_allclose(live.learned.expected_ns(LARGEST)[ran], expected[ran], rtol=0.1)
        np.testing.assert_allclose(live.learned.upper_ns(LARGEST)[ran], upper[ran], rtol=0.1)


@every_device
def test_rare_slow_batches_do_not_move_the_median(device):
    """If 5 % of the batches take three times as long, the median stays that of the others."""
    source, sizes = random.Random(4), MIXES["load"](400, seed=4)
    live = Live(device, sigma=0.02)
    for size in sizes:
        live.run(size, factor=3.0 if source.random() < 0.05 else 1.0)

    median = live.learned.fitted()
    errors = [abs(median.seconds(size) / live.seconds(size) - 1) for size in sizes[-100:]]
    assert np.mean(errors) <= 0.08


def test_a_size_first_seen_slow_is_corrected():
    """A size first seen in a slow moment is corrected at its next batch."""
    live = Live().run(*[4, 8] * 10).run(16, factor=2.0).run(8)
    assert live.ratio(16) <= 1.7

    live.run(16)

    assert live.ratio(16) == pytest.approx(1.0, rel=0.05)


def test_a_slow_ramp_is_followed():
    """A device that slows down by 1 % per batch is followed."""
    live = Live().run(*sizes_under_load(60, seed=0))
    for at in range(100):
        live.run(1 + at % 20, factor=1.01**at)

    assert live.ratio(10, 1.01**99) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("sigma", "mean"), [(0.0, 0.1), (0.1, 0.15)], ids=["exact", "noisy"])
def test_changes_of_speed_and_load_at_once(sigma, mean):
    """Through changes of speed, changes of load and outliers at once, predictions stay near the truth."""
    source, errors = random.Random(0), []
    for seed in range(4):
        live = Live(sigma=sigma, seed=seed).run(*sizes_under_load(100, seed))
        for _ in range(40):
            mix, factor = source.choice(list(MIXES.values())), source.choice([1.0, 1.0, 1.0, 2.0, 0.5])
            for at, size in enumerate(mix(25, source.random())):
                if at >= 5:
                    errors.append(abs(math.log(live.ratio(size, factor))))
                live.run(size, factor=factor * (10.0 if source.random() < 0.01 else 1.0))

    assert np.mean(errors) <= mean


# ---- priors


def test_a_prior_is_what_is_expected_at_first():
    """Until a batch corrects them, the expected durations are those of the prior."""
    prior = ServiceTime.affine(0.004, 0.00025)
    learned = LearnedServiceTime(prior=prior)

    assert learned.known
    assert learned.trusted >= LARGEST
    assert learned.best_batch_size(LARGEST) == LARGEST
    np.testing.assert_allclose(learned.expected_ns(LARGEST), prior.table_ns(LARGEST), rtol=0.01)


@pytest.mark.parametrize("factor", [0.5, 2.0, 30.0])
def test_a_prior_needs_three_batches_for_the_speed(factor):
    """With a prior of the right shape, three batches teach the durations of all sizes."""
    live = Live(prior=ServiceTime.affine(0.004, 0.00025)).run(3, 20, 8, factor=factor)

    for size in (1, 3, 10, 20, LARGEST):
        assert live.ratio(size, factor) == pytest.approx(1.0, rel=0.05)


def test_learned_times_can_be_saved_and_reused(tmp_path):
    """Learned durations can be saved, and used as the prior of the next process."""
    live = Live("silero").run(*sizes_under_load(200, seed=1))

    live.learned.fitted().save(tmp_path / "learned.json")
    again = LearnedServiceTime(prior=ServiceTime.load(tmp_path / "learned.json"))

    np.testing.assert_allclose(again.expected_ns(LARGEST), live.learned.expected_ns(LARGEST), rtol=0.02)


# ---- invariants

batches = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 10**12)), min_size=1, max_size=60)
priors = st.none() | st.builds(ServiceTime.affine, st.floats(1e-6, 1.0), st.floats(0.0, 0.1))


@given(batches, priors, st.integers(1, 300))
def test_tables_are_positive_and_nondecreasing(observed, prior, largest):
    """Tables are positive and nondecreasing, the upper one is not below the mean, and both are read-only."""
    learned = LearnedServiceTime(prior=prior)

    for size, duration_ns in observed:
        version = learned.version
        learned.observe(size, duration_ns, 0)
        expected, upper = learned.expected_ns(largest), learned.upper_ns(largest)
        assert expected.shape == upper.shape == (largest + 1,)
        assert expected.dtype == upper.dtype == np.int64
        assert expected[0] == upper[0] == 0
        assert expected[1] >= 1
        assert (np.diff(expected) >= 0).all()
        assert (np.diff(upper) >= 0).all()
        assert (upper >= expected).all()
        assert not expected.flags.writeable
        assert not upper.flags.writeable
        assert learned.expected_ns(largest) is expected
        assert 1 <= learned.best_batch_size(largest) <= largest
        assert learned.version >= version
    assert learned.observations == len(observed)


@given(batches, priors)
def test_reading_changes_nothing(observed, prior):
    """A learner that was read after every batch equals one that never was."""
    read, silent = LearnedServiceTime(prior=prior), LearnedServiceTime(prior=prior)

    for size, duration_ns in observed:
        read.observe(size, duration_ns, 0)
        silent.observe(size, duration_ns, 0)
        read.upper_ns(32)
        read.best_batch_size(7)
        read.fitted()
        read.flat_up_to(9)
        repr(read)

    assert read.version == silent.version
    assert read.fitted() == silent.fitted()
    np.testing.assert_array_equal(read.upper_ns(300), silent.upper_ns(300))


def test_the_version_changes_only_with_the_tables():
    """The version and the tables stay until a prediction moves, and then both change."""
    live = Live().run(*[4, 8] * 60)
    version, upper = live.learned.version, live.learned.upper_ns(LARGEST)

    live.run(*[4, 8] * 20)
    assert live.learned.version == version
    assert live.learned.upper_ns(LARGEST) is upper
    live.run(4, 8, 4, factor=1.1)

    assert live.learned.version > version
    assert live.learned.upper_ns(LARGEST)[8] > upper[8]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: LearnedServiceTime(prior=0.1), TypeError, "prior: expected a ServiceTime or None"),
        (lambda: LearnedServiceTime().observe(0, 1, 1), ValueError, "size: expected a whole number ≥ 1, got 0"),
        (lambda: LearnedServiceTime().observe(1, -1, 1), ValueError, "duration_ns: expected a whole number ≥ 0"),
        (lambda: Live().run(1).learned.upper_ns(0), ValueError, "max_batch_size: expected"),
        (lambda: Live().run(1).learned.expected_ns(2.5), TypeError, "max_batch_size: expected"),
    ],
    ids=["prior", "size", "duration", "cap-zero", "cap-float"],
)
def test_bad_arguments_are_named(make, error, says):
    """The error names the bad argument and the expectation."""
    with pytest.raises(error, match=says):
        make()


def test_repr_shows_batches_sizes_and_p95():
    """`repr` shows the number of batches, the number of sizes and the margin of the 95 % quantile."""
    assert repr(LearnedServiceTime()) == "LearnedServiceTime(observations=0)"
    assert repr(Live().run(*[4, 8] * 20).learned) == "LearnedServiceTime(observations=40, sizes=2, p95=+0.1%)"


@pytest.mark.parametrize("prior", [None, ServiceTime.affine(0.004, 0.00025)], ids=["learned", "prior"])
def test_plot_draws_mean_band_and_points(prior):
    """The plot shows the mean, the range up to the 95 % quantile, and a point for each size."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    live = Live(prior=prior, sigma=0.1).run(*[4, 8] * 20)

    ax = live.learned.plot()

    (line,) = ax.lines
    np.testing.assert_allclose(line.get_ydata(), live.learned.expected_ns(len(line.get_xdata()))[1:] / 1e9)
    band, points = ax.collections
    drawn = {int(size): seconds for size, seconds in points.get_offsets()}
    assert drawn[4] == pytest.approx(0.005, rel=0.1)
    assert drawn[8] == pytest.approx(0.006, rel=0.1)
    assert band.get_datalim(ax.transData).height > 0
    assert live.learned.plot(ax) is ax
    plt.close("all")
