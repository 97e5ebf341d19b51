"""`find_capacity`: the highest rate at which a service keeps its objective, measured by a ramp and steps around it."""

from collections.abc import Callable
from typing import Any

import numpy as np

from streaminfer._internal.validation import check_count, check_instance, check_number, check_share
from streaminfer.loadtest.arrivals import Poisson
from streaminfer.loadtest.capacity.search import Capacity, CapacitySearch, Step, check_rates
from streaminfer.loadtest.report.report import Report
from streaminfer.loadtest.report.sentences import describe_lateness
from streaminfer.loadtest.runner import run
from streaminfer.loadtest.sending.sender import running

__all__ = ["find_capacity"]

_WARM_UP = 0.1
"""Share of a step, at its start, that does not count, because the queue starts empty."""
_MAX_STEPS = 10_000


async def find_capacity(
    service: Any,
    *,
    inputs: Any,
    slo_s: float,
    low: float,
    high: float,
    step_s: float = 10.0,
    objective: float = 0.99,
    tolerance: float = 0.02,
    confidence: float = 0.95,
    most_steps: int = 30,
    arrivals: Callable[[float], Any] = Poisson,
    seed: int = 0,
    senders: int = 0,
    on_step: Callable[[Report], None] | None = None,
) -> Capacity:
    """Find the highest rate at which enough requests are on time.

    Args:
        service: as for `run`.
        inputs: as for `run`.
        slo_s: as for `run`.
        low: requests per second at which the ramp begins; the service must keep the objective there.
        high: the highest rate to try.
        step_s: seconds at each rate, at least enough for 200 requests at ``low``.
        objective: share of requests that must be on time.
        tolerance: half the relative width of the interval at which the search ends.
        confidence: probability with which the interval covers the capacity.
        most_steps: most steps after the ramp, at most 10,000.
        arrivals: makes the arrivals for a rate.
        seed: seed of the first step's schedule; each later step adds 1.
        senders: as for `run`.
        on_step: called with the report of each step.

    Returns:
        The capacity. Its interval can be wider than ``tolerance`` if the steps are used up. If the sender was the
        bottleneck, or no request is due after the warm-up, the search ends early and ``reason`` says so.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    low, high, step_s = check_rates(low, high, step_s)
    objective = check_share("objective", objective)
    tolerance = check_number("tolerance", tolerance, "a number > 0", lambda number: number > 0)
    confidence = check_share("confidence", confidence)
    most_steps = check_count("most_steps", most_steps, at_most=_MAX_STEPS)
    seed = check_count("seed", seed, at_least=0)
    check_instance("arrivals", arrivals, callable, "a function of the rate, such as si.loadtest.Poisson")
    check_instance("on_step", on_step, lambda it: it is None or callable(it), "a function or None")
    search = CapacitySearch(
        low, high, objective=objective, tolerance=tolerance, confidence=confidence, most_steps=most_steps, seed=seed
    )  # fmt: skip
    async with running(None if senders else service):
        while (rate := search.next_rate) is not None:
            report = await run(
                service,
                arrivals=arrivals(rate),
                inputs=inputs,
                duration_s=step_s,
                slo_s=slo_s,
                objective=objective,
                seed=seed + len(search.steps),
                senders=senders,
            )
            if on_step is not None:
                on_step(report)
            if not report.kept_schedule:
                search.stop(f"at {rate:,.4g}/s the sender was the bottleneck: {describe_lateness(report)}")
                break
            counted = report.record.due_s >= _WARM_UP * step_s
            if not counted.any():
                search.stop(f"at {rate:,.4g}/s no request is due after the first {_WARM_UP * step_s:g} s")
                break
            search.add(Step.of(rate, np.asarray(report.latencies_s[counted] > slo_s)))
    return search.result()
