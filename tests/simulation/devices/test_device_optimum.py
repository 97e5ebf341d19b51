"""The joint clairvoyant optimum: against every schedule of small instances, in every compiled form, and above policies."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streaminfer import _compiled_kernels
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.simulation import ModelLoad, arrivals, clairvoyant_optimum, device_optimum, simulate_device
from streaminfer.simulation.devices import optimum_kernels

NEVER = 2**63 - 1
VARIANTS = [_compiled_kernels.load_variant(name) for name in _compiled_kernels.variants()]
KERNELS = [variant.checked("most_of_two") for variant in VARIANTS]


@pytest.fixture
def plain_kernels(monkeypatch):
    """Return the module of the kernels, loaded without Numba."""
    monkeypatch.setattr("streaminfer._internal.loading.numba_jit.jit", lambda function: function)
    spec = importlib.util.spec_from_file_location("plain_optimum_kernels", Path(optimum_kernels.__file__))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def best_of_all_schedules(models, loads=(0, 0)):
    """Return the most requests on time, by exhaustion: any sets of both models' requests, in any batches and order.

    Of two schedules for the same set, with the same model in memory, only the one that finishes first matters; nothing
    else is assumed. Without loads, both models are always in memory.
    """
    requests = [
        (model, arrival, arrival + slo) for model, (arrivals_ns, slo, _) in enumerate(models) for arrival in arrivals_ns
    ]
    finish = {(0, 0): loads[0], (0, 1): loads[1]}
    for served in range(1, 2 ** len(requests)):
        finish[served, 0] = finish[served, 1] = NEVER
        batch = served
        while batch:
            members = [request for at, request in enumerate(requests) if batch >> at & 1]
            model = members[0][0]
            durations = models[model][2]
            if len({model for model, _, _ in members}) == 1 and len(members) < len(durations):
                for loaded in (0, 1):
                    free = finish[served & ~batch, loaded] + loads[model] * (loaded != model)
                    end = max(free, *(arrival for _, arrival, _ in members), 0) + durations[len(members)]
                    if all(end <= deadline for _, _, deadline in members):
                        finish[served, model] = min(finish[served, model], end)
            batch = (batch - 1) & served
    return max(served.bit_count() for (served, _), end in finish.items() if end < NEVER)


@st.composite
def small_models(draw):
    models = []
    for _ in range(2):
        gaps = draw(st.lists(st.integers(0, 12), min_size=0, max_size=4))
        steps = draw(st.lists(st.integers(0, 6), min_size=0, max_size=3))
        durations = [0, *np.cumsum([draw(st.integers(1, 12)), *steps]).tolist()]
        models.append((np.cumsum(gaps).tolist(), draw(st.integers(1, 40)), durations))
    return models


@given(models=small_models(), loads=st.tuples(st.integers(0, 9), st.integers(0, 9)))
@example(models=[([1, 13, 13], 2, [0, 1]), ([11], 8, [0, 3])], loads=(0, 2))  # one model takes no time to load
@settings(max_examples=200, deadline=None)
def test_optimum_equals_brute_force(models, loads):
    arguments = []
    for arrivals_ns, slo_ns, durations in models:
        times = np.array(arrivals_ns, np.int64)
        arguments += [times, times + slo_ns, np.array(durations, np.int64)]

    assert {kernel(*arguments, *loads) for kernel in KERNELS} == {best_of_all_schedules(models, loads)}


def test_the_plain_kernel_gives_the_same(plain_kernels):
    rng = np.random.default_rng(3)
    for _ in range(20):
        arguments = []
        for _ in range(2):
            times = np.sort(rng.integers(0, 200, 20))
            arguments += [times, times + int(rng.integers(5, 60)), np.cumsum([0, *rng.integers(1, 8, 5)])]
        arguments += rng.choice([(0, 0), (4, 9), (0, 7)]).tolist()
        assert {kernel(*arguments) for kernel in KERNELS} == {plain_kernels.most_of_two(*arguments)}


def load_of(rate, seed, *, slo_s=0.05, n=200):
    return ModelLoad(
        arrivals.poisson(rate, n, seed), slo_s=slo_s, service_time=ServiceTime.affine(0.005, 0.001), max_batch_size=16
    )


def test_idle_model_leaves_optimum_of_other():
    """A model without requests does not change the optimum of the other model."""
    load = load_of(700, 1)
    idle = ModelLoad([], slo_s=0.1, service_time=ServiceTime.affine(0.01, 0.001), max_batch_size=4)
    alone = clairvoyant_optimum(
        load.arrivals_ns / 1e9, slo_s=0.05, service_time=load.service_time, max_batch_size=load.max_batch_size
    )

    assert device_optimum({"a": load, "b": idle}) == device_optimum({"b": idle, "a": load}) == alone


def test_no_policy_exceeds_the_optimum():
    loads = {"a": load_of(500, 1, slo_s=0.025), "b": load_of(500, 2, slo_s=0.1)}

    best = device_optimum(loads)

    assert simulate_device(loads).on_time <= best
    assert simulate_device(loads, shared=False).on_time <= best


@pytest.mark.parametrize("loads", [{}, {"a": load_of(1, 1, n=1)}, {"a": 1, "b": 2}, 3], ids=repr)
def test_loads_other_than_two_models_are_rejected(loads):
    with pytest.raises((TypeError, ValueError), match=r"loads: expected a mapping of two names to ModelLoad"):
        device_optimum(loads)
