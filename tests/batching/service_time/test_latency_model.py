"""LatencyModel: speed, relative costs and noise, each rule on devices that are scripted to show it."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.service_time.latency_model import LatencyModel, nearest_size, size_steps
from streaminfer.batching.service_time.service_time import ServiceTime

pytestmark = pytest.mark.uncompiled

LINE = ServiceTime.affine(0.004, 0.00025)


class Device:
    """Device with a `LatencyModel` that observes it; durations are exact unless ``sigma`` is positive."""

    def __init__(self, *sizes, seconds=LINE.seconds, prior=None, sigma=0.0, seed=0):
        self.model = LatencyModel(prior=prior)
        self.seconds = seconds
        self.sigma = sigma
        self.source = random.Random(seed)
        self.run(*sizes)

    def run(self, *sizes, factor=1.0):
        for size in sizes:
            taken_s = self.seconds(size) * factor * math.exp(self.source.gauss(0.0, self.sigma))
            self.model.observe(size, round(taken_s * 1e9), 0)
        return self

    def ratio(self, size, factor=1.0):
        """Return the predicted duration, divided by the true one."""
        return self.model.predict_ns(size) / (self.seconds(size) * factor * 1e9)

    def log_ratio(self, size):
        return math.log(self.ratio(size))


SETTLED = [4, 8, 16, 32] * 10


# ---- before and after the first batch


def test_nothing_is_known_at_first():
    """Without a prior, a prediction before the first batch is an error."""
    model = LatencyModel()

    assert (model.known, model.in_doubt, model.trusted, model.observations, model.version) == (False, False, 0, 0, 0)
    assert model.seen() == {}
    with pytest.raises(RuntimeError, match="no service time is known yet"):
        model.predict_ns(4)
    with pytest.raises(RuntimeError, match="no service time is known yet"):
        model.curve()


@pytest.mark.parametrize("size", [1, 4, 64])
def test_one_size_predicts_larger_sizes_equal(size):
    """After a single size, larger batches are expected to take as long, so that they are tried."""
    model = Device(size).model
    seen_ns = LINE.seconds(size) * 1e9

    for other in (size, 2 * size, 10 * size):
        assert model.predict_ns(other) == pytest.approx(seen_ns, rel=0.001)


@pytest.mark.parametrize("size", [3, 16, 64])
def test_half_of_one_size_is_proportional(size):
    """After a single size, half of its cost counts as proportional to the size for smaller batches."""
    model = Device(size).model

    for other in (1, 2, size - 1):
        expected = 0.5 + 0.5 * other / size
        assert model.predict_ns(other) / model.predict_ns(size) == pytest.approx(expected, rel=0.001)


def test_two_sizes_say_the_slope():
    """The line through two measured sizes extends beyond them."""
    device = Device(8, 32, 8, 32)

    for size in (1, 2, 16, 64, 200):
        assert device.ratio(size) == pytest.approx(1.0, rel=0.03)


def test_trusted_is_the_largest_size_seen_twice():
    """The trusted size is the largest that was seen twice; the estimate of a size seen once is a guess."""
    device = Device(4, 16, 16, 64)

    assert device.model.trusted == 16
    assert device.run(64).model.trusted == 64


def test_a_prior_is_trusted():
    """With a prior, all sizes up to its largest, 4096, are trusted."""
    assert LatencyModel(prior=LINE).trusted == 4096


# ---- speed and costs


def test_a_batch_moves_the_speed_by_a_tenth():
    """A residual within the noise moves the prediction of every other size by a tenth of the residual."""
    device = Device(*SETTLED * 4)

    device.run(8, factor=1.015)

    assert device.log_ratio(32) == pytest.approx(0.1 * math.log(1.015), rel=0.05)


def test_a_size_that_settles_moves_the_speed_less():
    """The second batch of a size moves the speed half as much, because its residual may be an error of the cost."""
    device = Device(*[8, 64] * 20, 23)
    before = device.log_ratio(64)

    device.run(23, factor=1.015)

    assert device.log_ratio(64) - before == pytest.approx(0.05 * math.log(1.015), rel=0.05)


def test_a_cost_settles():
    """A size's own cost moves by a share that falls with its visits, so noise does not stay in the costs."""
    errors = []
    for seed in range(10):
        device = Device(*SETTLED * 8, sigma=0.1, seed=seed)
        errors.append(device.log_ratio(32) - device.log_ratio(4))

    assert np.std(errors) <= 0.05


def test_sizes_share_estimates_two_an_octave():
    """Batches of nearly the same size share an estimate, so memory grows only with the logarithm of the size."""
    device = Device(*range(1, 1025))

    two_an_octave = [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024]
    behind_powers = [9, 17, 33, 65, 129, 257, 513]
    assert sorted(device.model.seen()) == sorted(two_an_octave + behind_powers)


@pytest.mark.parametrize("tile", [8, 16, 32])
@pytest.mark.parametrize("sigma", [0.0, 0.1])
def test_models_that_pad_batches_are_learned(tile, sigma):
    """Durations of a model that pads batches to tiles or captured graphs are learned, also just above a tile."""
    device = Device(seconds=lambda size: 0.001 + 0.004 * math.ceil(size / tile), sigma=sigma, seed=3)
    device.run(*random.Random(4).choices(range(1, 3 * tile), k=600))

    for size in (tile // 2, tile, tile + 1, tile + 2, 2 * tile):
        assert device.ratio(size) == pytest.approx(1.0, rel=0.05 + sigma)


def test_a_new_size_is_drawn_to_its_neighbors():
    """The first duration of a size counts only in part, because it may come from a slow moment."""
    device = Device(*[8, 32] * 10).run(16, factor=1.15)

    assert 1.02 <= device.ratio(16) <= 1.12


def test_noise_makes_the_line_count_more():
    """The noisier the device, the less a single batch of a new size counts against the line."""
    moved = []
    for sigma in (0.0, 0.2):
        device = Device(*[8, 32] * 40, sigma=sigma)
        device.sigma, before = 0.0, device.model.predict_ns(16)
        device.model.observe(16, round(1.15 * before), 0)
        moved.append(device.model.predict_ns(16) / before)

    assert moved[1] - 1 < 0.6 * (moved[0] - 1)


@pytest.mark.parametrize(("size", "factor"), [(16, 10.0), (64, 10.0), (2, 3.0)], ids=["between", "steep", "falling"])
def test_an_implausible_cost_is_an_outlier(size, factor):
    """A new size that takes more than its neighbors allow is treated as an outlier."""
    device = Device(*[8, 32] * 10).run(size, factor=factor)

    assert device.model.in_doubt
    assert device.ratio(size) == pytest.approx(1.0, rel=0.05)
    assert device.ratio(32) == pytest.approx(1.0, rel=0.05)


def test_only_settled_neighbors_make_costs_implausible():
    """A neighbor that was seen once, in a slow moment, does not make a new size implausible."""
    device = Device(*[8, 64] * 10).run(23, factor=1.6).run(32)

    assert not device.model.in_doubt


def test_a_plausible_cost_is_learned_at_once():
    """The cost of a new size that its neighbors allow is learned at once, and its batch does not move the speed."""
    device = Device(*[8, 32] * 10)
    before_ns = device.model.predict_ns(8)
    device.run(16, factor=1.15)

    assert not device.model.in_doubt
    assert device.model.predict_ns(8) == pytest.approx(before_ns, rel=0.015)


def test_costs_are_no_steeper_than_convolutions():
    """From one size to the next the published cost grows at most with the power 1.35 of the size."""
    seconds = ServiceTime.table({8: 0.010, 16: 0.030}).seconds
    device = Device(*[8, 16] * 20, seconds=seconds)

    assert device.model.predict_ns(16) <= 1.001 * 2**1.35 * device.model.predict_ns(8)


def test_costs_never_fall():
    """Published costs never fall with the size, because a batch can be padded to a larger size that is faster."""
    device = Device(*[8, 16, 32] * 20, seconds={8: 0.010, 16: 0.009, 32: 0.0085}.__getitem__)

    assert device.model.predict_ns(8) <= device.model.predict_ns(16) <= device.model.predict_ns(32)


# ---- outliers and changes


@pytest.mark.parametrize("factor", [0.01, 0.1, 3.0, 100.0])
def test_an_outlier_is_clipped_to_its_limit(factor):
    """One batch moves no prediction by more than a few deviations of the noise, however slow or fast it is."""
    device = Device(*SETTLED).run(8, factor=factor)

    assert device.model.in_doubt
    for size in (4, 8, 32):
        assert device.ratio(size) == pytest.approx(1.0, rel=0.01)


def test_outliers_grow_with_the_noise():
    """A duration that would be an outlier of a steady device is noise of a device that scatters."""
    device = Device(*SETTLED, sigma=0.2)
    device.model.observe(8, round(1.3 * device.model.predict_ns(8)), 0)

    assert not device.model.in_doubt


@pytest.mark.parametrize(
    ("factor", "batches"),
    [(2.0, 3), (5.0, 3), (0.5, 2), (0.2, 2)],
    ids=["slower", "much-slower", "faster", "much-faster"],
)
def test_a_streak_is_a_change_of_speed(factor, batches):
    """Three slower batches in a row, or two faster ones, move the speed; one less does not."""
    device = Device(*SETTLED)
    sizes = [8, 32, 16]

    device.run(*sizes[: batches - 1], factor=factor)
    assert device.ratio(4) == pytest.approx(1.0, rel=0.02)
    device.run(sizes[batches - 1], factor=factor)

    assert not device.model.in_doubt
    for size in (4, 8, 16, 32):
        assert device.ratio(size, factor) == pytest.approx(1.0, rel=0.03)


def test_the_nearest_of_a_streak_counts():
    """After a streak, the speed jumps to the batch of the streak that differs least."""
    device = Device(*SETTLED)
    for size, factor in ((8, 10.0), (32, 2.0), (16, 5.0)):
        device.run(size, factor=factor)

    assert device.ratio(4, 2.0) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("between", [1.0, 0.1], ids=["normal", "opposite"])
def test_outliers_apart_are_no_streak(between):
    """A batch ends a streak if it takes as long as expected or is an outlier to the other side."""
    device = Device(*SETTLED)
    for factor in (10.0, 10.0, between, 10.0, 10.0, 1.0):
        device.run(8, factor=factor)

    assert device.ratio(32) == pytest.approx(1.0, rel=0.02)


def test_outliers_that_passed_are_noise():
    """Outliers that were no change of speed count as noise: they raise the mean factor."""
    device = Device(*SETTLED * 2)
    before = device.model.residuals.mean_factor
    device.run(8, factor=3.0).run(8)

    assert device.model.residuals.mean_factor - before == pytest.approx(2.0 / 64, abs=0.002)


def test_a_change_of_speed_is_no_noise():
    """Batches that reveal a change of speed do not count as noise."""
    device = Device(*SETTLED)
    before = device.model.residuals.mean_factor
    device.run(8, 16, 32, factor=3.0)

    assert device.model.residuals.mean_factor == pytest.approx(before, abs=0.001)


def test_only_settled_sizes_teach_the_noise():
    """Residuals of the first batches of a size do not count as noise, because its cost is still a guess."""
    device = Device(*[8, 32] * 20)
    before = device.model.residuals.mean_factor
    device.run(16).run(16, factor=1.015)
    assert not device.model.in_doubt

    assert device.model.residuals.mean_factor == before


def test_a_cost_seen_once_falls_at_once():
    """The cost of a size whose first two batches were slow falls at the first faster one."""
    device = Device(*[8, 64] * 10).run(23, 23, factor=1.6)
    assert device.ratio(23) > 1.2

    device.run(23)

    assert device.model.seen()[23][1] == 1
    assert device.ratio(23) == pytest.approx(1.0, rel=0.05)
    assert device.ratio(8) == pytest.approx(1.0, rel=0.02)


def test_an_implausible_fall_of_a_cost_is_an_outlier():
    """A faster batch that the neighbors do not allow is an outlier, also of a size that is hardly known."""
    device = Device(*[8, 64] * 10).run(23, 23).run(23, factor=0.2)

    assert device.model.in_doubt


def test_cost_of_the_only_size_does_not_fall_at_once():
    """A faster batch of the only size counts as an outlier, because there are no neighbors to compare it with."""
    device = Device(8, 8).run(8, factor=0.1)

    assert device.model.in_doubt


def test_a_hardly_known_cost_follows_slower_batches():
    """The cost of a size that is hardly known moves by more than the limit of an outlier."""
    device = Device(*[8, 64] * 10).run(23)
    before_ns = device.model.predict_ns(23)

    device.run(23, factor=1.5)

    assert device.model.predict_ns(23) / before_ns > 1.08


# ---- after an outage


@pytest.mark.parametrize("size", [1, 2, 11], ids=["small", "smaller-than-seen", "between"])
def test_end_of_outage_does_not_make_a_size_cheap(size):
    """A fast batch of a new size shows that an outage is over, so the other sizes are predicted to be fast again."""
    device = Device(*[16, 23, 32] * 20).run(16, 23, 32, factor=4.0)
    assert device.ratio(32, 4.0) == pytest.approx(1.0, rel=0.03)

    device.run(size)

    for known in (16, 23, 32):
        assert device.ratio(known) == pytest.approx(1.0, rel=0.05)


def test_an_outage_may_end_in_steps():
    """An outage may end in steps: each faster batch reverts as much of the slowdown as it shows."""
    device = Device(*[16, 23, 32] * 20).run(16, 23, 32, factor=4.0).run(1, factor=2.0)
    assert device.ratio(32, 2.0) == pytest.approx(1.0, rel=0.05)

    device.run(2)

    assert device.ratio(32) == pytest.approx(1.0, rel=0.05)


def test_recovery_does_not_exceed_the_outage():
    """The speed recovers at most to its value before the outage; what remains lowers the cost of the fast size."""
    cheap = Device(*[16, 23, 32] * 20, seconds=lambda size: LINE.seconds(size) * (0.5 if size == 8 else 1.0))

    cheap.run(16, 23, 32, factor=4.0).run(8)

    assert cheap.ratio(32) == pytest.approx(1.0, rel=0.05)
    assert cheap.model.seen()[8][0] == pytest.approx(cheap.seconds(8) * 1e9, rel=0.05)


def test_cheap_size_in_outage_misleads_three_batches():
    """If a size is cheap and the outage continues, the next three batches correct the estimate."""
    cheap = Device(*[16, 23, 32] * 20, seconds=lambda size: LINE.seconds(size) * (0.5 if size == 8 else 1.0))
    cheap.run(16, 23, 32, factor=4.0).run(8, factor=4.0)
    assert cheap.ratio(32, 4.0) < 0.7

    cheap.run(16, 23, 32, factor=4.0)

    assert cheap.ratio(32, 4.0) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("factors", [(), (4.0, 1.0)], ids=["never", "over"])
def test_a_fast_batch_without_outage_is_a_cheap_size(factors):
    """A fast batch of a hardly known size lowers the cost of that size if there was no outage, or if it is over."""
    device = Device(*[16, 23, 32] * 20, seconds=lambda size: LINE.seconds(size) * (0.5 if size == 8 else 1.0))
    for factor in factors:
        device.run(16, 23, 32, 16, factor=factor)

    device.run(8)

    assert device.ratio(32) == pytest.approx(1.0, rel=0.05)


def test_a_confirmed_speed_is_not_reverted():
    """Sixteen batches confirm a slower speed; a fast batch then lowers only the cost of its size."""
    device = Device(*[16, 23, 32] * 20, seconds=lambda size: LINE.seconds(size) * (0.5 if size == 8 else 1.0))
    device.run(16, 23, 32, *[16, 23] * 8, factor=4.0)

    device.run(8, factor=4.0)

    assert device.ratio(32, 4.0) == pytest.approx(1.0, rel=0.05)


def test_size_not_run_for_long_is_hardly_known():
    """A size that has not run for long is hardly known.

    Its cost falls at the first faster batch, even if other sizes that have not run for long contradict that.
    """
    device = Device(*[4, 8] * 10, seconds=lambda size: LINE.seconds(size) * (3.0 if size >= 16 else 1.0))
    device.run(*[16, 32] * 10)
    device.seconds = LINE.seconds
    device.run(*[8] * 129)
    assert device.ratio(16) > 1.5

    device.run(16)

    assert device.model.seen()[16][0] == pytest.approx(LINE.seconds(16) * 1e9, rel=0.02)
    assert device.ratio(8) == pytest.approx(1.0, rel=0.05)


def test_few_batches_give_a_flatter_slope():
    """The fewer batches there were, the more the line is drawn towards a constant cost."""
    slopes = []
    for visits in (1, 20):
        device = Device(*[6, 8] * visits, seconds=lambda size: 0.001 * size)
        slopes.append(device.ratio(64))

    assert slopes[0] < 0.97 * slopes[1]


def test_a_streak_at_a_new_size_moves_its_cost():
    """If a streak ends at a hardly known size, the cost of that size jumps, and other predictions stay."""
    device = Device(*[8, 64] * 10).run(23)
    before_ns = device.model.predict_ns(8)
    device.run(23, 23, 23, factor=1.5)

    assert device.ratio(23, 1.5) == pytest.approx(1.0, rel=0.15)
    assert device.model.predict_ns(8) == pytest.approx(before_ns, rel=0.05)


def test_a_first_call_that_was_slow_is_unlearned():
    """A first batch that took ten times as long is forgotten after two batches of the usual speed."""
    device = Device().run(8, factor=10.0).run(8, 8)

    assert device.ratio(8) == pytest.approx(1.0, rel=0.02)


def test_small_drifts_of_steady_devices_are_followed():
    """A slow drift of a device without noise is followed to a thousandth."""
    device = Device(*SETTLED)
    for at in range(200):
        device.run(8, factor=1.0 + at * 2e-5)

    assert device.ratio(8, 1.004) == pytest.approx(1.0, abs=0.001)


# ---- publication, prior, reading


def test_the_version_is_stable_on_a_steady_device():
    """Once sizes have settled, a batch publishes a new version only if it moves predictions."""
    device = Device(*SETTLED * 3)
    version, curve = device.model.version, device.model.curve()

    device.run(*SETTLED)
    assert device.model.version == version
    assert device.model.curve() is curve
    device.run(8, factor=1.015)

    assert device.model.version > version


def test_a_size_that_settles_is_published():
    """Each of the first batches of a size publishes a new version, however little it changes."""
    device = Device(*SETTLED * 3)
    versions = []
    for _ in range(5):
        device.run(64)
        versions.append(device.model.version)

    assert len(set(versions)) == 5


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_a_prior_of_the_right_shape_needs_a_streak(factor):
    """With a prior, the first three batches teach the speed of all sizes."""
    device = Device(3, 20, 8, prior=ServiceTime.affine(0.004 / factor, 0.00025 / factor))

    for size in (1, 8, 45, 64):
        assert device.ratio(size) == pytest.approx(1.0, rel=0.05)


def test_a_slow_first_call_does_not_move_a_prior():
    """With a prior, a first batch that took thirty times as long counts as an outlier."""
    device = Device(prior=LINE).run(3, factor=30.0)

    assert device.ratio(20) == pytest.approx(1.0, rel=0.02)


def test_a_prior_of_the_wrong_shape_is_unlearned():
    """Batches correct a prior whose relative costs are wrong."""
    device = Device(prior=ServiceTime.affine(0.0, 0.001))
    device.run(*[1, 45, 2, 32, 4, 23, 3, 16, 6, 11, 8] * 80)

    for size in (1, 2, 8, 16, 23, 45):
        assert device.ratio(size) == pytest.approx(1.0, rel=0.05)


def test_a_larger_size_refutes_a_prior():
    """Sizes that never ran are forgotten if a larger size is faster than the prior expects of them."""
    device = Device(*[2] * 140, seconds=ServiceTime.affine(0.016, 0.001).seconds, prior=ServiceTime.affine(0.0, 0.017))

    device.run(4)

    assert 3 not in device.model.seen()
    assert 1.0 <= device.ratio(4) <= 1.5


def test_larger_size_refutes_what_was_learned_long_ago():
    """A size that was slow by accident makes no larger size look slow once it has not run for long."""
    device = Device(8)
    device.run(11, 12, factor=5.0)
    device.run(*[8] * 140)

    device.run(*[16] * 4)

    assert 11 not in device.model.seen()
    assert device.ratio(16) == pytest.approx(1.0, abs=0.05)


def test_noise_does_not_refute_a_prior():
    """A size of a prior is not forgotten if a larger one seems faster by no more than the noise."""
    device = Device(*[2] * 140, prior=ServiceTime.affine(0.004, 0.00001))

    device.run(*[4] * 4, factor=0.98)

    assert 3 in device.model.seen()


def test_batches_since_counts_all_sizes():
    """The age of a size is the number of batches since one of about that size, and infinite before its second one."""
    device = Device(8)
    assert device.model.batches_since(8) == math.inf

    device.run(8, 32, 32, 32)

    assert device.model.batches_since(8) == 3
    assert device.model.batches_since(7) == 3
    assert device.model.batches_since(32) == 0
    assert device.model.batches_since(16) == math.inf


def test_seen_lists_estimate_and_visits_by_size():
    """`seen` returns the estimate and the number of batches of each size, for a plot."""
    seen = Device(*[4, 8] * 3).model.seen()

    assert {size: visits for size, (_, visits) in seen.items()} == {4: 3, 8: 3}
    assert seen[8][0] == pytest.approx(LINE.seconds(8) * 1e9, rel=0.01)


batches = st.lists(st.tuples(st.integers(1, 300), st.integers(0, 10**12)), min_size=1, max_size=60)
priors = st.none() | st.builds(ServiceTime.affine, st.floats(1e-6, 1.0), st.floats(0.0, 0.1))


@given(batches, priors)
def test_published_costs_are_positive_and_rise(observed, prior):
    """After any observations, published costs are positive, finite, nondecreasing and not too steep."""
    model = LatencyModel(prior=prior)

    for size, duration_ns in observed:
        model.observe(size, duration_ns, 0)
        curve = model.curve()
        costs = np.array(curve.times_s)
        assert np.isfinite(costs).all()
        assert (costs > 0).all()
        assert (np.diff(costs) >= 0).all()
        filled_up = 2 ** np.ceil(np.log2(curve.sizes[1:]))
        steepest = (filled_up / curve.sizes[:-1]) ** 1.35
        assert (costs[1:] <= costs[:-1] * steepest * (1 + 1e-9)).all()
        assert 0 < model.scale_ns() < math.inf


@pytest.mark.parametrize("durations", [(0, 10**8), (10**8, 0), (1, 10**12)], ids=["slower", "faster", "extreme"])
def test_costs_a_millionfold_apart_are_taken(durations):
    """Durations a millionfold apart are no error, and are corrected later.

    A device in virtual time may take no time at first and much time later.
    """
    model = LatencyModel()
    for size, duration_ns in zip((1, 2), durations, strict=True):
        model.observe(size, duration_ns, 0)

    for _ in range(200):
        model.observe(1, 10**6, 0)
        model.observe(2, 10**6, 0)

    assert model.predict_ns(1) == pytest.approx(1e6, rel=0.02)
    assert model.predict_ns(2) == pytest.approx(1e6, rel=0.02)


@given(batches, priors)
def test_reading_changes_nothing(observed, prior):
    """A model that was read after every batch equals one that never was."""
    read, silent = LatencyModel(prior=prior), LatencyModel(prior=prior)

    for size, duration_ns in observed:
        read.observe(size, duration_ns, 0)
        silent.observe(size, duration_ns, 0)
        read.seen(), read.trusted, read.in_doubt, read.predict_ns(7), read.batches_since(size), read.curve()

    assert (read.version, read.curve(), read.scale_ns()) == (silent.version, silent.curve(), silent.scale_ns())
    assert read.seen() == silent.seen()


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
    ids=["no-rows", "size-float", "size-bool", "negative", "duration-float", "instant-float"],
)
def test_bad_observations_are_named(arguments, error, says):
    """The error names the bad argument, and nothing is learned from it."""
    model = LatencyModel()

    with pytest.raises(error, match=says):
        model.observe(*arguments)
    assert (model.observations, model.known) == (0, False)


def test_a_bad_prior_is_named():
    """A prior that is not a `ServiceTime` raises an error that names the argument."""
    with pytest.raises(TypeError, match="prior: expected a ServiceTime or None"):
        LatencyModel(prior=0.1)


def test_numpy_integers_are_accepted():
    """Sizes, durations and instants can be NumPy integers."""
    plain, numpy = LatencyModel(), LatencyModel()

    plain.observe(4, 1000, 5)
    numpy.observe(np.int64(4), np.int64(1000), np.int64(5))

    assert plain.seen() == numpy.seen()


def test_sizes_with_one_nearest_size_share_a_step():
    """Two sizes have the same step if they have the same nearest size; an octave has three steps."""
    steps = size_steps(5000).tolist()
    nearest = [nearest_size(size) for size in range(1, 5001)]

    assert len(set(steps[1:])) == len(set(nearest)) == len(set(zip(steps[1:], nearest, strict=True)))
    assert steps == sorted(steps)
    assert steps[4096] == 32
