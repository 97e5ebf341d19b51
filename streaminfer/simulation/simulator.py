"""A policy over a trace of arrivals in simulated time; it is the policy of the live batcher, not a copy.

A policy depends only on the queue, the time and the free workers, so the simulator needs no event loop. It owns a
`RequestQueue` like the live dispatcher, and moves an integer clock from event to event. It consults the same `Policy`
object at the same moments: when requests have arrived, when a batch has ended, when queued requests have expired, and
at the instant that the last decision named.

Events of one instant come in this order: batches end (a response at the deadline is on time), requests arrive, queued
requests whose deadline has come are dropped, the policy decides for free workers. So one schedule has one outcome, and
a run is exactly reproducible.

Differences from the live batcher: ``"lookahead"`` knows the durations, while a live batcher learns them and keeps a
margin for their scatter; no batch waits for returning callers; a batch always runs to its end, while a live one is
cancelled when no caller is left; late responses are counted as late, while a live batcher does not deliver them, nor
one at the instant of its deadline; the queue has no limit.

Complexity: O(log n) per event, with 2 events per request and 1 per batch, plus the cost of the policy. About 2 µs per
request with the greedy policy.
"""

from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streaminfer._internal.distributions.real_arrays import real_array
from streaminfer._internal.validation import (
    check_choice,
    check_count,
    check_duration,
    check_instance,
    check_number,
    expected,
)
from streaminfer.batching.planner import kernel_loader
from streaminfer.batching.planner.lookahead import Lookahead
from streaminfer.batching.policy import POLICY_NAMES, Greedy, Policy, PolicyName, adapt_policy, is_policy
from streaminfer.batching.queue._ticket_cy import NEVER, Execution
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.request import timeout_ns
from streaminfer.simulation.arrivals import arrivals_in_ns, priorities_of
from streaminfer.simulation.model_run import ModelRun
from streaminfer.simulation.simulation_result import SimulationResult

__all__ = ["check_noise", "durations_in_ns", "simulate"]

_MAX_INSTANT_S = 4e9
_MOST = 2**20
"""Largest batch and number of workers: a run keeps a table of each."""
_MOST_NOISE = 3.0


def simulate(
    arrivals_s: ArrayLike,
    *,
    slo_s: float,
    service_time: ServiceTime,
    max_batch_size: int,
    policy: PolicyName | Policy = "lookahead",
    workers: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    deadlines_s: ArrayLike | None = None,
    priorities: Sequence[int] | NDArray[np.integer[Any]] | None = None,
    max_queue_delay_s: float = 0.0,
) -> SimulationResult:
    """Run a policy over a trace of arrivals.

    If no kernels were compiled ahead of time, the first run of a `Lookahead` compiles or loads them, for seconds. A
    policy object that learns continues from its knowledge: create a new one for an independent run.

    Args:
        arrivals_s: shape (n,), seconds ≥ 0, ascending.
        slo_s: time limit of a request, from its arrival, unless ``deadlines_s`` is given.
        service_time: actual durations of batches by size; ``"lookahead"`` knows them.
        max_batch_size: the most requests in a batch.
        policy: ``"lookahead"``, ``"greedy"``, or any object with the ``decide`` of `Policy`. If it has
            ``observe(size, duration_ns, now_ns)``, that is called at the end of each batch.
        workers: how many batches may run at once.
        noise: each duration is multiplied by ``exp(noise * z)``, z standard normal. The median factor is 1, and
            ``noise`` is about the relative standard deviation if it is small; at most 3.
        seed: seed of the noise.
        deadlines_s: shape (n,), the instant after which a response to each request is worthless; ``inf``: none.
        priorities: shape (n,), whole numbers of 32 bits, a lower one is more urgent. ``None``: all the same.
        max_queue_delay_s: with ``policy="greedy"``, how long the oldest request may be queued for a fuller batch.

    Returns:
        Outcomes of all requests and batches.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.
        RuntimeError: the policy object breaks the protocol: it sends too many requests or requests that are not queued,
            wants to decide again at an instant that has passed, or leaves requests queued for ever.
        MissingExtra: there are no kernels for a `Lookahead`, and Numba is not installed.
    """
    arrivals_ns = arrivals_in_ns(arrivals_s)
    n = arrivals_ns.size
    slo_ns = timeout_ns(check_duration("slo_s", slo_s, positive=True))
    max_batch_size = check_count("max_batch_size", max_batch_size)
    workers = check_count("workers", workers, at_most=_MOST)
    deadlines_ns = arrivals_ns + slo_ns if deadlines_s is None else _deadlines_in_ns(deadlines_s, n)
    durations_ns = durations_in_ns(service_time, max_batch_size)
    resolved = _policy(
        policy, max_batch_size, service_time, workers, check_duration("max_queue_delay_s", max_queue_delay_s)
    )
    model = ModelRun(resolved, arrivals_ns, deadlines_ns, priorities_of(priorities, n))
    rng = np.random.default_rng(check_count("seed", seed, at_least=0))
    _run(model, resolved, workers, durations_ns.tolist(), check_noise(noise), rng)
    return model.result(workers)


def check_noise(noise: object) -> float:
    """Return the noise of service times, the standard deviation of their logarithm.

    Raises:
        TypeError, ValueError: it is not a number from 0 to 3.
    """
    return check_number("noise", noise, f"a number from 0 to {_MOST_NOISE:g}", lambda it: 0.0 <= it <= _MOST_NOISE)


def durations_in_ns(service_time: ServiceTime, max_batch_size: int) -> NDArray[np.int64]:
    """Return the durations of batches by size.

    Returns:
        Shape (max_batch_size + 1,), int64, nondecreasing, at least 1 from size 1 on.

    Raises:
        TypeError: ``service_time`` is not a `ServiceTime`.
        ValueError: ``max_batch_size`` is too large.
    """
    expectation = "a ServiceTime; fitted() gives that of a learned one"
    check_instance("service_time", service_time, ServiceTime, expectation)
    return service_time.table_ns(check_count("max_batch_size", max_batch_size, at_most=_MOST))


def _run(
    model: ModelRun, policy: Policy, workers: int, durations_ns: list[int], noise: float, rng: np.random.Generator
) -> None:
    """Move from event to event until none is left."""
    observe = adapt_policy(policy).observe
    running: list[tuple[int, int, Execution]] = []  # heap of end, worker, batch
    while True:
        now_ns = min(model.next_ns, running[0][0] if running else NEVER)
        if now_ns == NEVER:
            break
        while running and running[0][0] <= now_ns:
            execution = heappop(running)[2]
            model.end(execution, now_ns)
            if observe is not None:
                observe(len(execution.inputs), now_ns - execution.started_ns, now_ns)
        model.admit(now_ns)
        while len(running) < workers and (decision := model.propose(now_ns, workers - len(running))) is not None:
            size = len(decision.batch)
            if size >= len(durations_ns):
                raise RuntimeError(f"{policy!r} sends a batch of {size}, above {len(durations_ns) - 1}")
            execution = model.take(decision.batch, now_ns, decision.reason)
            duration_ns = durations_ns[size]
            if noise:
                duration_ns = max(1, round(duration_ns * float(np.exp(noise * rng.standard_normal()))))
            worker = execution.record.worker  # type: ignore[union-attr] # take() has noted the batch
            heappush(running, (now_ns + duration_ns, worker, execution))
    if model.queue.queued:
        raise RuntimeError(f"{policy!r} leaves {model.queue.queued} requests queued for ever")


def _policy(
    policy: PolicyName | Policy, max_batch_size: int, service_time: ServiceTime, workers: int, delay_s: float
) -> Policy:
    if delay_s and not (isinstance(policy, str) and policy == "greedy"):
        raise ValueError(expected("max_queue_delay_s", f"0 with policy={policy!r}", delay_s))
    if not isinstance(policy, str):
        check_instance("policy", policy, is_policy, "a policy's name or an object with decide")
        resolved = policy
    elif check_choice("policy", policy, POLICY_NAMES) == "greedy":
        resolved = Greedy(max_batch_size, timeout_ns(delay_s))
    else:
        resolved = Lookahead(max_batch_size, service_time, workers=workers)
    if isinstance(resolved, Lookahead):
        kernel_loader.load()  # before the run, so that it does not include the seconds of a compilation
    return resolved


def _deadlines_in_ns(deadlines_s: ArrayLike, n: int) -> NDArray[np.int64]:
    deadlines = real_array("deadlines_s", deadlines_s)
    if deadlines.shape != (n,):
        raise ValueError(expected("deadlines_s", f"one for each of {n} arrivals", deadlines.shape))
    if np.isnan(deadlines).any():
        raise ValueError(expected("deadlines_s", "seconds, or inf for none", float("nan")))
    in_ns = np.rint(np.clip(deadlines, -_MAX_INSTANT_S, _MAX_INSTANT_S) * 1e9).astype(np.int64)
    return np.where(deadlines == np.inf, NEVER, in_ns)
