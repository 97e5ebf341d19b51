"""The clairvoyant optimum: against all schedules of small instances, a program without pruning, and any policy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaminfer.batching.policy import Decision, Greedy
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.simulation import arrivals
from streaminfer.simulation.offline_optimum import clairvoyant_optimum
from streaminfer.simulation.simulator import simulate

NEVER = 2**63 - 1


def table_ms(*milliseconds):
    """Return service times in ms for batch sizes from 1 on; the last one holds for all larger sizes."""
    given = {size: duration / 1e3 for size, duration in enumerate(milliseconds, start=1)}
    return ServiceTime.table(given | {10_000: milliseconds[-1] / 1e3})


def in_nanoseconds(durations_ns):
    made = table_ms(*(duration / 1e6 for duration in durations_ns[1:].tolist()))
    np.testing.assert_array_equal(made.table_ns(durations_ns.size - 1), durations_ns)
    return made


def best_of_all_schedules(arrivals_ms, slo_ms, durations_ms, max_batch_size):
    """Return the most requests on time, by exhaustion: any sets of requests, in any batches and order.

    Of two schedules for the same set, only the one that finishes first matters; nothing else is assumed.
    """
    n = len(arrivals_ms)
    finish = {0: 0}
    for served in range(1, 2**n):
        best = NEVER
        batch = served
        while batch:
            members = [index for index in range(n) if batch >> index & 1]
            before = finish[served & ~batch]
            if len(members) <= max_batch_size and before < NEVER:
                end = max(before, *(arrivals_ms[index] for index in members), 0) + durations_ms[len(members) - 1]
                if all(end <= arrivals_ms[index] + slo_ms for index in members):
                    best = min(best, end)
            batch = (batch - 1) & served
        finish[served] = best
    return max(served.bit_count() for served, end in finish.items() if end < NEVER)


@st.composite
def small_instances(draw):
    gaps = draw(st.lists(st.integers(0, 12), min_size=1, max_size=7))
    steps = draw(st.lists(st.integers(0, 6), min_size=7, max_size=7))
    durations = np.cumsum([draw(st.integers(1, 12)), *steps[1:]]).tolist()
    return np.cumsum(gaps).tolist(), draw(st.integers(1, 40)), durations, draw(st.integers(1, 7))


def optimum_ms(arrivals_ms, slo_ms, durations_ms, max_batch_size):
    return clairvoyant_optimum(
        np.array(arrivals_ms) / 1e3,
        slo_s=slo_ms / 1e3,
        service_time=table_ms(*durations_ms),
        max_batch_size=max_batch_size,
    )


@settings(max_examples=300)
@given(small_instances())
def test_optimum_equals_brute_force(instance):
    assert optimum_ms(*instance) == best_of_all_schedules(*instance)


def test_optimum_is_best_schedule_under_pressure():
    """The optimum is the best of all schedules if some requests must be dropped."""
    # seven requests of which some must be dropped, often from between those that are served
    rng = np.random.default_rng(11)
    partial = 0
    for _ in range(200):
        arrivals_ms = np.cumsum(rng.integers(0, 5, 7)).tolist()
        durations_ms = np.cumsum([rng.integers(3, 9), *rng.integers(0, 4, 6)]).tolist()
        instance = arrivals_ms, int(rng.integers(8, 16)), durations_ms, int(rng.integers(1, 5))
        best = best_of_all_schedules(*instance)
        assert optimum_ms(*instance) == best, instance
        partial += 0 < best < 7
    assert partial > 120  # most instances have drops


def test_an_answer_at_the_very_deadline_counts():
    assert optimum_ms([0], 6, [6], 1) == 1
    assert optimum_ms([0], 5, [6], 1) == 0


def test_waiting_can_beat_immediate_release():
    """Waiting for further requests can be better than releasing a batch at once."""
    # alone, the first would hold the worker until 10 and the two others would be late
    assert optimum_ms([0, 1, 1], 11, [10, 10, 10], 3) == 3


def test_head_is_dropped_to_save_later_requests():
    # a schedule that serves the first, alone or with the second, is too late for the others
    assert optimum_ms([0, 2, 3], 11, [8, 10, 11], 3) == 2
    greedy = simulate(
        [0.0, 0.002, 0.003], slo_s=0.011, service_time=table_ms(8, 10, 11), max_batch_size=3, policy="greedy"
    )
    assert greedy.on_time == 1


def test_no_requests_and_hopeless_requests():
    assert clairvoyant_optimum([], slo_s=0.05, service_time=table_ms(1), max_batch_size=4) == 0
    assert optimum_ms([0, 1, 2], 4, [5], 8) == 0


def test_a_cap_beyond_the_number_of_requests():
    assert optimum_ms([0, 0, 0], 10, [10], 1000) == 3


# -- the kernel -----------------------------------------------------------------------------------------------------


@st.composite
def traces(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = draw(st.integers(1, 60))
    arrivals_ns = np.cumsum(rng.integers(0, draw(st.sampled_from([1, 2, 8, 40])), n)).astype(np.int64)
    cap = min(n, draw(st.integers(1, 9)))
    durations_ns = np.concatenate(
        ([0], np.cumsum(np.concatenate((rng.integers(1, 20, 1), rng.integers(0, 5, cap - 1)))))
    )
    return arrivals_ns, draw(st.integers(1, 120)), durations_ns, cap


def most_on_time_plain(arrivals_ns, deadlines_ns, durations_ns, max_batch_size):
    """Return the optimum by the program without pruning: entry k is the earliest finish with k of the prefix served."""
    n = arrivals_ns.size
    fronts = np.full((n + 1, n + 1), NEVER, np.int64)
    fronts[0, 0] = 0
    for last in range(1, n + 1):
        fronts[last] = fronts[last - 1]
        for size in range(1, min(max_batch_size, last) + 1):
            starts = np.maximum(fronts[last - size, : n + 1 - size], arrivals_ns[last - 1])
            fits = starts <= deadlines_ns[last - size] - durations_ns[size]
            ends = np.where(fits, starts + np.where(fits, durations_ns[size], 0), NEVER)
            np.minimum(fronts[last, size:], ends, out=fronts[last, size:])
    return int(np.flatnonzero(fronts[n] < NEVER)[-1])


@given(traces())
def test_optimum_equals_its_plain_twin(trace):
    """Pruning does not change the optimum."""
    arrivals_ns, slo_ns, durations_ns, cap = trace
    best = clairvoyant_optimum(
        arrivals_ns / 1e9, slo_s=slo_ns / 1e9, service_time=in_nanoseconds(durations_ns), max_batch_size=cap
    )
    assert best == most_on_time_plain(arrivals_ns, arrivals_ns + slo_ns, durations_ns, cap)


@pytest.mark.parametrize(
    ("process", "rate", "most"),
    [  # by Baptiste's program over the number of drops, without pruning: 5 + 1·b ms, b ≤ 32, SLO 50 ms, seed 1
        (arrivals.poisson, 746.0, 2485),
        (arrivals.poisson, 1297.0, 1611),
        (arrivals.gamma, 291.0, 2472),
        (arrivals.gamma, 1297.0, 1532),
        (arrivals.on_off, 311.0, 2478),
        (arrivals.on_off, 1297.0, 1358),
    ],
)
def test_optimum_of_the_published_traces(process, rate, most):
    made = process(rate, 2500, 1)
    assert (
        clairvoyant_optimum(made, slo_s=0.05, service_time=ServiceTime.affine(0.005, 0.001), max_batch_size=32) == most
    )


# -- above any policy -----------------------------------------------------------------------------------------------


class Largest:
    """Policy that releases the largest batch on time for its head, and may drop heads that make the batch smaller."""

    def __init__(self, durations_ns, *, drop_heads):
        self.durations_ns = durations_ns
        self.drop_heads = drop_heads

    def decide(self, queue, now_ns, free_workers):
        tickets = queue.first(len(queue))
        refused = []
        while True:
            size = full = min(len(tickets), len(self.durations_ns) - 1)
            while size > 1 and now_ns + self.durations_ns[size] > tickets[0].deadline_ns:
                size -= 1
            if size == full or not self.drop_heads:
                return Decision(tickets[:size], "largest", refused)
            refused.append(tickets.pop(0))


@given(traces(), st.integers(0, 60))
def test_no_policy_beats_the_optimum(trace, delay_ns):
    arrivals_ns, slo_ns, durations_ns, cap = trace

    common = {"slo_s": slo_ns / 1e9, "service_time": in_nanoseconds(durations_ns), "max_batch_size": cap}
    best = clairvoyant_optimum(arrivals_ns / 1e9, **common)
    greedy = Greedy(cap), Greedy(cap, delay_ns)
    for policy in (*greedy, Largest(durations_ns, drop_heads=False), Largest(durations_ns, drop_heads=True)):
        result = simulate(arrivals_ns / 1e9, policy=policy, **common)
        assert result.on_time <= best


@pytest.mark.parametrize("process", [arrivals.poisson, arrivals.gamma, arrivals.on_off, arrivals.bursts])
@pytest.mark.parametrize("load", [0.3, 0.8, 1.5, 5.0])
def test_no_policy_beats_the_optimum_on_long_traces(process, load):
    service_time = ServiceTime.affine(0.005, 0.001)
    common = {"slo_s": 0.05, "service_time": service_time, "max_batch_size": 32}
    made = process(load * 32 / 0.037, 1500, 4)
    best = clairvoyant_optimum(made, **common)
    early_drop = simulate(made, policy=Largest(service_time.table_ns(32), drop_heads=True), **common).on_time
    assert simulate(made, policy="greedy", **common).on_time <= best
    assert 0.7 * best < early_drop <= best


@given(traces())
def test_more_time_and_larger_batches_never_hurt(trace):
    arrivals_ns, slo_ns, durations_ns, cap = trace

    def most(slo_ns, cap):
        return clairvoyant_optimum(
            arrivals_ns / 1e9, slo_s=slo_ns / 1e9, service_time=in_nanoseconds(durations_ns), max_batch_size=cap
        )

    assert most(slo_ns, cap) <= most(slo_ns + 1, cap) <= arrivals_ns.size
    if cap > 1:
        assert most(slo_ns, cap - 1) <= most(slo_ns, cap)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"arrivals_s": [1.0, 0.0]}, ValueError, "arrivals_s"),
        ({"arrivals_s": [np.nan]}, ValueError, "arrivals_s"),
        ({"slo_s": 0.0}, ValueError, "slo_s"),
        ({"slo_s": "1"}, TypeError, "slo_s"),
        ({"max_batch_size": 0}, ValueError, "max_batch_size"),
        ({"service_time": 0.005}, TypeError, "service_time: expected a ServiceTime"),
    ],
)
def test_invalid_arguments_raise(arguments, error, message):
    call = {"arrivals_s": [0.0, 1.0], "slo_s": 0.05, "service_time": table_ms(5), "max_batch_size": 4} | arguments
    with pytest.raises(error, match=message):
        clairvoyant_optimum(call.pop("arrivals_s"), **call)
