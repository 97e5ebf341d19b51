"""`interleave`: alternating runs of two services, for a verdict that slow changes of the machine do not disturb."""

from typing import Any

from streaminfer._internal.validation import check_count
from streaminfer.loadtest.report.report import Report
from streaminfer.loadtest.runner import run

__all__ = ["interleave"]

_MAX_PAIRS = 10_000


async def interleave(
    before: Any,
    after: Any,
    *,
    pairs: int = 12,
    seed: int = 0,
    **settings: Any,
) -> tuple[list[Report], list[Report]]:
    """Run two services alternately; both runs of a pair have the same schedule, and the order changes with each pair.

    Args:
        before: a service, as for `run`.
        after: the other service.
        pairs: number of runs of each service, at most 10,000; a verdict needs at least 6.
        seed: seed of the first pair's schedule; each later pair adds 1.
        **settings: the other arguments of `run`; ``duration_s`` is the duration of one run.

    Returns:
        The reports of each service, for `compare`.
    """
    pairs = check_count("pairs", pairs, at_most=_MAX_PAIRS)
    seed = check_count("seed", seed, at_least=0)
    reports: tuple[list[Report], list[Report]] = ([], [])
    for number in range(pairs):
        order = ((before, reports[0]), (after, reports[1]))
        for service, service_reports in order if number % 2 == 0 else reversed(order):
            service_reports.append(await run(service, seed=seed + number, **settings))
    return reports
