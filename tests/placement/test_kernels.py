"""Kernels of placement, compiled and uncompiled."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.placement.solver import kernels
from streaminfer.simulation import simulate

FORMS = [kernels._compiled, lambda name: kernels.EXPORTS[name][0]]


@pytest.mark.parametrize("form", FORMS, ids=["compiled", "plain"])
def test_delays_are_those_of_the_simulator(form):
    """The kernel gives each request the same delay as the simulator with one greedy worker."""
    arrivals_s = np.cumsum(np.random.default_rng(1).exponential(0.004, 3000))
    time = ServiceTime.affine(0.006, 0.002)

    delays_s = np.empty_like(arrivals_s)
    form("placement_batch_delays")(arrivals_s, time.table_s(8), delays_s)

    expected = simulate(arrivals_s, slo_s=1e6, service_time=time, max_batch_size=8, policy="greedy")
    assert np.allclose(delays_s, expected.latencies_s, atol=1e-7)


@pytest.mark.parametrize("form", FORMS, ids=["compiled", "plain"])
@given(seed=st.integers(0, 10**6))
def test_flow_equals_the_least_cut(form, seed):
    """The flow is within its limits, and as large as the smallest of all cuts."""
    rng = np.random.default_rng(seed)
    clusters, pools = rng.integers(1, 5, 2)
    limits = rng.integers(0, 10, (clusters, pools)) * rng.integers(0, 2, (clusters, pools))
    demand, capacity = rng.integers(0, 15, clusters), rng.integers(0, 15, pools)
    flow, reached = np.zeros_like(limits), np.zeros(clusters + pools, np.int64)

    form("placement_extend_flow")(limits, demand, capacity, flow, reached)

    assert (flow >= 0).all()
    assert (flow <= limits).all()
    assert (flow.sum(axis=1) <= demand).all()
    assert (flow.sum(axis=0) <= capacity).all()
    cuts = [
        demand[~chosen].sum() + np.minimum(limits[chosen].sum(axis=0), capacity).sum()
        for bits in itertools.product([False, True], repeat=int(clusters))
        if (chosen := np.array(bits)) is not None
    ]
    assert flow.sum() == min(cuts)
    inside = reached[:clusters] > 0
    assert (flow.sum(axis=1) == demand)[~inside].all()


def test_flow_extends_an_existing_flow():
    """A call continues from the given flow, and moves parts of it if that makes room."""
    limits = np.array([[5, 5], [5, 0]])
    flow = np.array([[5, 0], [0, 0]])

    clusters, _ = kernels.extend_flow(limits, np.array([5, 5]), np.array([5, 5]), flow)

    assert flow.tolist() == [[0, 5], [5, 0]]
    assert not clusters.any()
