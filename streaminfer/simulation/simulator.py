"""What a policy does with a trace of arrivals, in simulated time: the policy of the live batcher, not a copy of it.

The idea: a policy is a function of what waits, the time and the free workers, so the simulator needs no event loop. It
owns a `RequestQueue` like the live dispatcher, moves an integer clock from event to event and asks the same
`Policy` object the same question at the same moments: when requests have arrived, when a batch has finished, when
waiting requests have expired, and at the instant that its last answer named.

Events of one instant come in this order: batches end (a response at the deadline is on time), requests arrive, queued
requests whose deadline has come are dropped, the policy decides for free workers. So one schedule has one outcome, and
a run repeats exactly.

How it differs from the live batcher: a batch runs to its end, also when every caller has cancelled; a live batcher
delivers no late response, and here it is counted as late; the queue has no limit.

Complexity: O(log n) an event, with 2 events a request and 1 a batch, and what the policy costs. About 2 µs a request
with the greedy policy.
"""

import math
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray

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
from streaminfer.batching.policy import (
    POLICY_NAMES,
    Decision,
    Greedy,
    Policy,
    PolicyName,
    adapt_policy,
    is_policy,
)
from streaminfer.batching.queue._ticket_cy import NEVER, Execution
from streaminfer.batching.service_time.service_time import ServiceTime
from streaminfer.request import timeout_ns
from streaminfer.simulation.arrivals import arrivals_in_ns, numbers, priorities_of
from streaminfer.simulation.model_run import ModelRun
from streaminfer.simulation.simulation_result import SimulationResult

__all__ = ["durations_in_ns", "simulate"]

_FURTHEST_S = 4e9


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
    """Runs a policy over a trace of arrivals.

    Where no kernels were compiled ahead of time, the first run of a `Lookahead` compiles or loads them, for seconds. A
    policy object that learns goes on from what it knows: make a new one for a run of its own.

    Args:
        arrivals_s: shape (n,), seconds ≥ 0, ascending.
        slo_s: time limit of a request, from its arrival, where ``deadlines_s`` says nothing.
        service_time: what a batch really takes, by its size; ``"lookahead"`` knows it.
        max_batch_size: the most requests in a batch.
        policy: ``"lookahead"``, ``"greedy"``, or any object with the ``decide`` of `Policy`. One that has
            ``observe(size, duration_ns, now_ns)`` is told of each batch when it ends.
        workers: how many batches may run at once.
        noise: each duration is multiplied by ``exp(noise * z)``, z standard normal: median 1, and about a relative
            standard deviation while it is small.
        seed: of the noise.
        deadlines_s: shape (n,), the instant by which each request is worth an answer; ``inf``: it has no deadline.
        priorities: shape (n,), whole numbers of 32 bits, a lower one is more urgent. ``None``: all the same.
        max_queue_delay_s: with ``policy="greedy"``, how long the oldest request may be queued for a fuller batch.

    Returns:
        What came of every request and batch.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        RuntimeError: a policy object that breaks the protocol: it sends more than fits or what does not wait, wants to
            look again at an instant that has passed, or leaves requests waiting for ever.
        MissingExtra: there are no kernels for a `Lookahead`, nor is Numba installed.
    """
    arrivals_ns = arrivals_in_ns(arrivals_s)
    n = arrivals_ns.size
    slo_ns = timeout_ns(check_duration("slo_s", slo_s, positive=True))
    max_batch_size = check_count("max_batch_size", max_batch_size)
    workers = check_count("workers", workers)
    deadlines_ns = arrivals_ns + slo_ns if deadlines_s is None else _deadlines_in_ns(deadlines_s, n)
    durations_ns = durations_in_ns(service_time, max_batch_size)
    made = _policy(
        policy, max_batch_size, service_time, workers, check_duration("max_queue_delay_s", max_queue_delay_s)
    )
    simulation = _Simulation(
        model=ModelRun(made, arrivals_ns, deadlines_ns, priorities_of(priorities, n)),
        policy=made,
        observe=adapt_policy(made).observe,
        durations_ns=durations_ns.tolist(),
        free=list(range(workers)),
        noise=check_number("noise", noise, "a finite number ≥ 0", lambda it: 0 <= it < math.inf),
        rng=np.random.default_rng(check_count("seed", seed, at_least=0)),
    )
    simulation.run()
    return simulation.model.result(workers)


def durations_in_ns(service_time: ServiceTime, max_batch_size: int) -> NDArray[np.int64]:
    """What batches take, by their size.

    Returns:
        Shape (max_batch_size + 1,), int64, nondecreasing, at least 1 from size 1 on.

    Raises:
        TypeError: ``service_time`` is something else.
    """
    what = "a ServiceTime; fitted() gives that of a learned one"
    check_instance("service_time", service_time, lambda value: isinstance(value, ServiceTime), what)
    return service_time.table_ns(max_batch_size)


@attrs.define(kw_only=True, eq=False)
class _Simulation:
    """The clock and the workers of one run."""

    model: ModelRun
    policy: Policy
    observe: Callable[..., object] | None
    durations_ns: list[int]
    free: list[int]  # heap of workers
    noise: float
    rng: np.random.Generator
    running: list[tuple[int, int, Execution]] = attrs.field(init=False, factory=list)  # heap of end, worker, batch

    def run(self) -> None:
        """Moves from event to event until nothing is left to happen."""
        model, running = self.model, self.running
        while True:
            now_ns = min(model.next_ns, running[0][0]) if running else model.next_ns
            if now_ns == NEVER:
                if model.queue.queued:
                    raise RuntimeError(f"{self.policy!r} leaves {model.queue.queued} requests queued for ever")
                return
            while running and running[0][0] <= now_ns:
                self._finish(now_ns)
            model.admit(now_ns)
            while self.free and (decision := model.propose(now_ns, len(self.free))) is not None:
                self._launch(decision, now_ns)

    def _launch(self, decision: Decision, now_ns: int) -> None:
        size = len(decision.batch)
        if size >= len(self.durations_ns):
            raise RuntimeError(f"{self.policy!r} sends a batch of {size}, above {len(self.durations_ns) - 1}")
        execution = self.model.take(decision.batch, now_ns, decision.reason)
        duration_ns = self.durations_ns[size]
        if self.noise:
            duration_ns = max(1, round(duration_ns * float(np.exp(self.noise * self.rng.standard_normal()))))
        heappush(self.running, (now_ns + duration_ns, heappop(self.free), execution))

    def _finish(self, now_ns: int) -> None:
        _, worker, execution = heappop(self.running)
        heappush(self.free, worker)
        self.model.end(execution, now_ns)
        if self.observe is not None:
            self.observe(len(execution.inputs), now_ns - execution.started_ns, now_ns)


def _policy(
    policy: PolicyName | Policy, max_batch_size: int, service_time: ServiceTime, workers: int, delay_s: float
) -> Policy:
    if delay_s and not (isinstance(policy, str) and policy == "greedy"):
        raise ValueError(expected("max_queue_delay_s", f"0 with policy={policy!r}", delay_s))
    if not isinstance(policy, str):
        check_instance("policy", policy, is_policy, "a policy's name or an object with decide")
        made = policy
    elif check_choice("policy", policy, POLICY_NAMES) == "greedy":
        made = Greedy(max_batch_size, timeout_ns(delay_s))
    else:
        made = Lookahead(max_batch_size, service_time, workers=workers)
    if isinstance(made, Lookahead):
        kernel_loader.load()  # its seconds, where Numba compiles, are no part of the run
    return made


def _deadlines_in_ns(deadlines_s: ArrayLike, n: int) -> NDArray[np.int64]:
    deadlines = numbers("deadlines_s", deadlines_s)
    if deadlines.shape != (n,):
        raise ValueError(expected("deadlines_s", f"one for each of {n} arrivals", deadlines.shape))
    if np.isnan(deadlines).any():
        raise ValueError(expected("deadlines_s", "seconds, or inf for none", float("nan")))
    in_ns = np.rint(np.clip(deadlines, -_FURTHEST_S, _FURTHEST_S) * 1e9).astype(np.int64)
    return np.where(deadlines == np.inf, NEVER, in_ns)
