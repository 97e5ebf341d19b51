"""The simulator: examples, invariants of every run, policies that break the protocol, and the live batcher."""

import asyncio
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streaminfer as si
from streaminfer.batching.planner.lookahead import Lookahead
from streaminfer.batching.policy import Decision, Greedy
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.simulation import arrivals
from streaminfer.simulation.simulator import simulate
from streaminfer.testing import ScriptedBackend, run

pytestmark = pytest.mark.uncompiled

MS = 1_000_000


def affine(setup_ms, per_item_ms):
    return ServiceTime.affine(setup_ms / 1e3, per_item_ms / 1e3)


def simulate_ms(arrivals_ms, *, slo_ms, setup_ms=5, per_item_ms=1, max_batch_size=4, policy="greedy", **keywords):
    if "deadlines_ms" in keywords:
        keywords["deadlines_s"] = np.array(keywords.pop("deadlines_ms")) / 1e3
    return simulate(
        np.array(arrivals_ms) / 1e3,
        slo_s=slo_ms / 1e3,
        service_time=affine(setup_ms, per_item_ms),
        max_batch_size=max_batch_size,
        policy=policy,
        **keywords,
    )


def in_ms(seconds):
    return (np.asarray(seconds) * 1e3).tolist()


def counts(result):
    return result.on_time, result.dropped, result.late


# -- worked examples ------------------------------------------------------------------------------------------------


def test_batches_grow_while_the_worker_is_busy():
    result = simulate_ms([0, 1, 2, 3, 4, 20], slo_ms=50, max_batch_size=3)
    assert in_ms(result.batch_starts_s) == pytest.approx([0, 6, 14, 20])
    assert in_ms(result.batch_ends_s) == pytest.approx([6, 14, 20, 26])
    assert result.batch_sizes.tolist() == [1, 3, 1, 1]
    assert result.reasons == ("idle_worker", "full", "idle_worker", "idle_worker")
    assert result.batch_workers.tolist() == [0, 0, 0, 0]
    assert in_ms(result.latencies_s) == pytest.approx([6, 13, 12, 11, 16, 6])
    assert counts(result) == (6, 0, 0)
    assert result.drops_s.size == 0
    assert result.share_on_time == 1.0


def test_arrivals_of_one_instant_share_a_batch():
    assert simulate_ms([3, 3, 3], slo_ms=50).batch_sizes.tolist() == [3]


def test_arrival_as_batch_ends_joins_next_batch():
    """A request that arrives as a batch ends joins the next one."""
    assert simulate_ms([0, 1, 6], slo_ms=50).batch_sizes.tolist() == [1, 2]


@pytest.mark.parametrize(("slo_ms", "expected"), [(6, (1, 0, 0)), (5.999, (0, 0, 1))])
def test_an_answer_at_the_very_deadline_is_on_time(slo_ms, expected):
    assert counts(simulate_ms([0], slo_ms=slo_ms)) == expected


def test_request_is_dropped_at_its_deadline():
    """A request that is still queued at its deadline is dropped at that instant."""
    result = simulate_ms([0, 1, 2], slo_ms=9, setup_ms=10, per_item_ms=0.5)
    # the first response is late, at 10.5; the second is dropped at 10; the third, due at 11, still runs, and is late
    assert in_ms(result.drops_s) == pytest.approx([10])
    assert result.batch_sizes.tolist() == [1, 1]
    assert counts(result) == (0, 1, 2)
    np.testing.assert_allclose(result.latencies_s, [0.0105, np.nan, 0.019])


def test_late_requests_do_not_delay_drops():
    """Late requests do not delay the drops of queued requests."""
    result = simulate_ms([0, 0, 1], slo_ms=8, setup_ms=100, max_batch_size=2)
    assert counts(result) == (0, 1, 2)
    assert in_ms(result.drops_s) == pytest.approx([9])


def test_a_delay_holds_back_a_batch_that_is_not_full():
    result = simulate_ms([0, 1, 2, 100], slo_ms=500, max_batch_size=8, policy="greedy", max_queue_delay_s=0.004)
    assert in_ms(result.batch_starts_s) == pytest.approx([4, 104])
    assert result.batch_sizes.tolist() == [3, 1]
    assert result.reasons == ("max_queue_delay", "max_queue_delay")


def test_several_workers_take_turns_the_lowest_first():
    result = simulate_ms([0, 1, 2, 3], slo_ms=50, workers=2)
    assert in_ms(result.batch_starts_s) == pytest.approx([0, 1, 6])
    assert result.batch_workers.tolist() == [0, 1, 0]
    assert result.batch_sizes.tolist() == [1, 1, 2]
    assert result.workers == 2


def test_more_urgent_requests_are_served_first():
    result = simulate_ms([0, 1, 2, 3], slo_ms=100, max_batch_size=1, priorities=[0, 5, 5, -1])
    assert in_ms(result.latencies_s) == pytest.approx([6, 17, 22, 9])


def test_per_request_deadlines_replace_the_slo():
    """A request with its own deadline is on time by that deadline, and not by the objective."""
    result = simulate_ms([0, 1, 2, 3], slo_ms=1, max_batch_size=1, deadlines_ms=[6, 5, np.inf, 3])
    assert result.is_on_time.tolist() == [True, False, True, False]
    assert counts(result) == (2, 2, 0)
    assert in_ms(result.drops_s) == pytest.approx([3, 5])  # the deadline of the last is its arrival
    np.testing.assert_allclose(result.latencies_s, [0.006, np.nan, 0.010, np.nan])


def test_simulation_without_arrivals():
    result = simulate_ms([], slo_ms=50, priorities=[], deadlines_ms=[])
    assert counts(result) == (0, 0, 0)
    assert result.share_on_time == 1.0
    assert result.latencies_s.shape == result.batch_sizes.shape == result.drops_s.shape == (0,)
    assert repr(result) == "SimulationResult(on_time=0, dropped=0, late=0, share_on_time=1.0000, batches=0)"


# -- invariants of every run ----------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32),
    rate=st.sampled_from([50.0, 500.0, 3000.0]),
    workers=st.integers(1, 3),
    delay_s=st.sampled_from([0.0, 0.003]),
    noise=st.sampled_from([0.0, 0.5]),
    mixed=st.booleans(),
)
def test_all_requests_and_batches_are_accounted_for(seed, rate, workers, delay_s, noise, mixed):
    """Every request and every batch is accounted for."""
    made = arrivals.on_off(rate, 120, seed)
    rng = np.random.default_rng(seed)
    keywords = {"deadlines_s": made + rng.choice([-0.001, 0.02, 0.1, np.inf], 120)} if mixed else {}
    if mixed:
        keywords["priorities"] = rng.integers(-1, 2, 120)
    keywords["max_queue_delay_s"] = delay_s
    call = {"slo_s": 0.03, "service_time": affine(4, 0.5), "max_batch_size": 8, "policy": "greedy", "workers": workers}
    result = simulate(made, **call, noise=noise, seed=seed, **keywords)

    assert sum(counts(result)) == 120
    answered = ~np.isnan(result.latencies_s)
    assert result.is_on_time.sum() == result.on_time
    assert answered.sum() == result.on_time + result.late == result.batch_sizes.sum()
    assert result.drops_s.shape == (result.dropped,)
    deadlines = keywords.get("deadlines_s", made + 0.03)
    done = (made + result.latencies_s)[answered]
    np.testing.assert_array_equal(result.is_on_time[answered], np.round(done, 9) <= np.round(deadlines[answered], 9))
    assert (np.diff(result.drops_s) >= 0).all()

    assert (result.batch_sizes >= 1).all()
    assert (result.batch_sizes <= 8).all()
    assert (np.diff(result.batch_starts_s) >= 0).all()
    durations = result.batch_ends_s - result.batch_starts_s
    if not noise:
        np.testing.assert_allclose(durations, (4 + 0.5 * result.batch_sizes) / 1e3, rtol=1e-6)
    for worker in range(workers):
        mine = result.batch_workers == worker
        assert (result.batch_ends_s[mine][:-1] <= result.batch_starts_s[mine][1:] + 1e-12).all()
    np.testing.assert_allclose(  # each batch completes all its requests at its end
        np.sort(done), np.sort(np.repeat(result.batch_ends_s, result.batch_sizes)), rtol=0, atol=2e-9
    )
    again = simulate(made, **call, noise=noise, seed=seed, **keywords)
    np.testing.assert_array_equal(again.latencies_s, result.latencies_s)


def test_noise_is_lognormal_and_seeded():
    """Noise is lognormal around the given service time and repeats with its seed."""
    made = np.arange(3000.0)

    def durations(seed):
        result = simulate(
            made, slo_s=1.0, service_time=affine(5, 1), max_batch_size=4, policy="greedy", noise=0.3, seed=seed
        )
        return result.batch_ends_s - result.batch_starts_s

    logarithms = np.log(durations(1) / 0.006)
    assert logarithms.mean() == pytest.approx(0.0, abs=0.02)
    assert logarithms.std() == pytest.approx(0.3, rel=0.05)
    np.testing.assert_array_equal(durations(1), durations(1))
    assert not np.array_equal(durations(1), durations(2))


def test_result_repr_is_one_line():
    result = simulate_ms([0, 1, 2, 3], slo_ms=13)
    assert repr(result) == (
        "SimulationResult(on_time=4, dropped=0, late=0, share_on_time=1.0000, batches=2, 2 a batch)"
    )


# -- the policy -----------------------------------------------------------------------------------------------------


class Scripted:
    """Policy that decides as scripted, and records its calls."""

    def __init__(self, decide):
        self._decide = decide
        self.asked = []
        self.finishes = []

    def decide(self, queue, now_ns, free_workers):
        self.asked.append((queue.queued, now_ns, free_workers))
        return self._decide(queue, now_ns, free_workers)

    def observe(self, size, duration_ns, now_ns):
        self.finishes.append((size, duration_ns, now_ns))

    def __repr__(self):
        return "Scripted"


def test_policy_is_told_batch_duration_at_its_end():
    """The policy observes the duration of each batch when the batch ends."""
    policy = Scripted(Greedy(4).decide)
    simulate_ms([0, 1, 2], slo_ms=50, policy=policy)
    assert policy.finishes == [(1, 6 * MS, 6 * MS), (2, 7 * MS, 13 * MS)]
    assert policy.asked == [(1, 0, 1), (2, 6 * MS, 1)]


def test_batches_of_one_end_are_observed_by_worker():
    """Of batches that end at one instant, the policy observes that of the lowest worker first, whenever they began."""
    sizes = iter([1, 2, 1])
    policy = Scripted(lambda queue, now_ns, free_workers: Decision(queue.first(next(sizes)), "scripted"))
    # worker 1 runs two rows for 2 ms, worker 0 meanwhile one row for 1 ms, and then another
    simulate_ms([0, 0, 0, 1], slo_ms=50, setup_ms=0, workers=2, policy=policy)
    assert policy.finishes == [(1, 1 * MS, 1 * MS), (1, 1 * MS, 2 * MS), (2, 2 * MS, 2 * MS)]


def test_policy_is_consulted_until_no_worker_is_free():
    policy = Scripted(Greedy(1).decide)
    simulate_ms([0, 0, 0], slo_ms=50, workers=2, max_batch_size=1, policy=policy)
    assert policy.asked == [(3, 0, 2), (2, 0, 1), (1, 6 * MS, 2)]


def test_policy_is_consulted_again_after_rejections():
    """Requests that the policy rejects are dropped at once, and the policy is consulted again."""

    def newest_only(queue, now_ns, free_workers):
        *older, newest = queue.first(queue.queued)
        return Decision(reject=older) if older else Decision([newest], "newest")

    result = simulate_ms([0, 1, 2, 3], slo_ms=50, policy=Scripted(newest_only))
    assert counts(result) == (2, 2, 0)
    assert in_ms(result.drops_s) == pytest.approx([6, 6])
    np.testing.assert_allclose(result.latencies_s, [0.006, np.nan, np.nan, 0.009])


def test_the_queue_a_policy_sees_is_the_real_one():
    seen = []

    def look(queue, now_ns, free_workers):
        seen.append((queue.batch_s, queue.next_deadline_ns, queue.running, queue.succeeded))
        return Greedy(4).decide(queue, now_ns, free_workers)

    simulate_ms([0, 1, 2], slo_ms=50, policy=Scripted(look))
    assert seen == [(0.0, 50 * MS, 0, 0), (0.006, 51 * MS, 0, 1)]


def test_queued_requests_expire_without_a_release():
    policy = Scripted(lambda queue, now_ns, free_workers: Decision())
    result = simulate_ms([0, 1, 2], slo_ms=50, policy=policy)
    assert counts(result) == (0, 3, 0)
    assert in_ms(result.drops_s) == pytest.approx([50, 51, 52])


@pytest.mark.parametrize(
    ("decide", "message"),
    [
        (lambda w, now, free: Decision(w.first(3) * 2, "too many"), "Scripted sends a batch of 6, above 4"),
        (lambda w, now, free: Decision(w.first(1) * 2, "twice"), "Scripted sends requests that do not wait"),
        (lambda w, now, free: Decision(reject=w.first(1) * 2), "Scripted rejected .* which is not queued"),
        (lambda w, now, free: Decision(recheck_ns=now), "look again at once"),
        (lambda w, now, free: Decision(), "Scripted leaves 3 requests queued for ever"),
    ],
)
def test_a_policy_that_breaks_the_protocol(decide, message):
    with pytest.raises(RuntimeError, match=message):
        simulate_ms([0, 0, 0], slo_ms=50, policy=Scripted(decide), deadlines_ms=[np.inf] * 3)


def test_lookahead_is_default_policy():
    """Lookahead is the default policy and knows the true service time."""
    made = arrivals.poisson(1.5 * 32 / 0.037, 400, 1)
    call = {"slo_s": 0.05, "service_time": affine(5, 1), "max_batch_size": 32}
    by_default = simulate(made, **call)
    given = simulate(made, policy=Lookahead(32, affine(5, 1)), **call)
    np.testing.assert_array_equal(by_default.latencies_s, given.latencies_s)
    assert by_default.reasons == given.reasons
    assert by_default.on_time > 3 * simulate(made, policy="greedy", **call).on_time


def test_planner_has_kernels_from_first_decision():
    """A planner has its compiled kernels from the first decision on."""
    # in a separate process, which has not compiled the kernels
    code = (
        "from streaminfer.batching import arrivals\n"
        "from streaminfer.batching.service_time.service_time import ServiceTime\n"
        "from streaminfer.simulation.simulator import simulate\n"
        "import numpy as np\n"
        "call = dict(slo_s=0.05, service_time=ServiceTime.affine(0.005, 0.001), max_batch_size=32)\n"
        "made = arrivals.poisson(1300.0, 400, 1)\n"
        "first, second = simulate(made, **call), simulate(made, **call)\n"
        "print(np.array_equal(first.latencies_s, second.latencies_s, equal_nan=True), first.reasons == second.reasons)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]


# -- the live batcher -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_s", [0.0, 0.004])
@pytest.mark.parametrize(("process", "load"), [(arrivals.poisson, 0.7), (arrivals.gamma, 0.4), (arrivals.poisson, 1.3)])
def test_live_batcher_behaves_like_the_simulator(delay_s, process, load):
    """The live batcher forms the same batches, for the same reasons, as the simulator."""
    setup_ms, per_item_ms, cap, slo_s = 5, 1, 16, 0.25
    # a microsecond apart at least: an event loop swaps timers of one instant
    made = process(load * cap / 0.021, 600, 3) + np.arange(600) * 1e-6
    simulated = simulate(
        made,
        slo_s=slo_s,
        service_time=affine(setup_ms, per_item_ms),
        max_batch_size=cap,
        policy="greedy",
        max_queue_delay_s=delay_s,
    )

    backend = ScriptedBackend(duration_s=lambda size: (setup_ms + per_item_ms * size) / 1e3)

    async def main(loop):
        batcher = si.AdaptiveBatcher(
            max_batch_size=cap,
            slo_s=slo_s,
            policy="greedy",
            max_queue_delay_s=delay_s,
            clock=loop.clock,
        )
        service = batcher.wrap(backend)

        async def one(at_s):
            await asyncio.sleep(at_s - loop.time())
            try:
                response = await service.call(si.Request(at_s))
            except si.DeadlineExceeded:
                return np.nan
            return (response.timings.inferred_ns - response.timings.enqueued_ns) / 1e9

        return await asyncio.gather(*map(one, made)), batcher.statistics()

    latencies, statistics = run(main)
    assert backend.batch_sizes == simulated.batch_sizes.tolist()
    assert dict(statistics.released) == {reason: simulated.reasons.count(reason) for reason in set(simulated.reasons)}
    assert statistics.succeeded == simulated.on_time
    assert statistics.deadline_exceeded == simulated.dropped + simulated.late
    # the live batcher returns no late response; timers of the virtual loop are a nanosecond or two off
    expected = np.where(simulated.is_on_time, simulated.latencies_s, np.nan)
    np.testing.assert_allclose(latencies, expected, rtol=0, atol=5e-9)


# -- the picture ----------------------------------------------------------------------------------------------------


@pytest.fixture
def axes():
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    yield plt.subplots()[1]
    plt.close("all")


def test_plot_draws_batches_arrivals_and_drops(axes):
    result = simulate_ms([0, 1, 1, 2, 3, 4], slo_ms=4, max_batch_size=2, workers=2)
    assert result.dropped == 1
    assert result.plot(axes) is axes
    bars = [span.vertices for group in axes.collections for span in group.get_paths()]
    assert len(bars) == result.batch_sizes.size
    first = bars[0]
    assert first[:, 0].min() == pytest.approx(result.batch_starts_s[0])
    assert first[:, 0].max() == pytest.approx(result.batch_ends_s[0])
    ticks = {line.get_label(): line.get_xdata().tolist() for line in axes.lines}
    assert ticks == {"arrivals": result.arrivals_s.tolist(), "drops": result.drops_s.tolist()}
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["worker 0", "worker 1", "arrivals", "drops"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert set(legend) == {*result.reasons, "arrivals", "drops"}


def test_empty_timeline_makes_its_own_figure(axes):
    """The timeline of no requests is drawn on a figure of its own."""
    own = simulate_ms([], slo_ms=9).plot()
    assert own is not axes
    assert len(own.lines) == 2


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"arrivals_s": [1.0, 0.0]}, ValueError, "arrivals_s: expected ascending"),
        ({"arrivals_s": [0.0, np.nan]}, ValueError, "arrivals_s: expected finite"),
        ({"slo_s": 0}, ValueError, "slo_s"),
        ({"slo_s": None}, TypeError, "slo_s"),
        ({"service_time": 5}, TypeError, r"service_time: expected a ServiceTime; fitted\(\) .* got 5"),
        ({"service_time": 5, "policy": "lookahead"}, TypeError, "service_time: expected a ServiceTime"),
        ({"max_batch_size": 1.5}, TypeError, "max_batch_size"),
        ({"policy": "fast"}, ValueError, "policy: expected one of 'lookahead', 'greedy', got 'fast'"),
        ({"policy": 3}, TypeError, "policy: expected a policy's name or an object with decide"),
        ({"policy": Greedy}, TypeError, "policy: expected a policy's name or an object with decide, got .*Greedy"),
        ({"workers": 0}, ValueError, "workers"),
        ({"noise": -0.1}, ValueError, r"noise: expected a number from 0 to 3, got -0\.1"),
        ({"noise": 1e300}, ValueError, "noise"),
        ({"workers": 2**63}, ValueError, "workers"),
        ({"max_batch_size": 2**63}, ValueError, "max_batch_size"),
        ({"noise": np.nan}, ValueError, "noise"),
        ({"seed": -1}, ValueError, "seed"),
        ({"deadlines_s": [1.0]}, ValueError, "deadlines_s: expected one for each of 2 arrivals"),
        ({"deadlines_s": [1.0, np.nan]}, ValueError, "deadlines_s: .*nan"),
        ({"deadlines_s": ["1", "2"]}, TypeError, "deadlines_s"),
        ({"priorities": [1]}, ValueError, "priorities: expected one for each of 2 arrivals"),
        ({"priorities": [0.0, 1.0]}, TypeError, "priorities"),
        ({"priorities": [0, 2**31]}, ValueError, "priorities: expected whole numbers of 32 bits"),
        ({"max_queue_delay_s": -1.0}, ValueError, "max_queue_delay_s"),
        (
            {"policy": "lookahead", "max_queue_delay_s": 0.1},
            ValueError,
            "max_queue_delay_s: expected 0 with policy='lookahead'",
        ),
    ],
)
def test_invalid_arguments_raise(arguments, error, message):
    call = {
        "arrivals_s": [0.0, 1.0],
        "slo_s": 0.05,
        "service_time": affine(5, 1),
        "max_batch_size": 4,
        "policy": "greedy",
    } | arguments
    with pytest.raises(error, match=message):
        simulate(call.pop("arrivals_s"), **call)


def test_far_deadlines_do_not_overflow():
    result = simulate_ms([0, 0], slo_ms=1, deadlines_ms=[1e300, -1e300])
    assert counts(result) == (1, 1, 0)
