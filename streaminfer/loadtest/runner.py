"""`run`: one load test of a service, from its schedule to its report."""

import time
from typing import Any

from numpy.typing import ArrayLike

from streaminfer._internal.validation import check_count, check_duration, check_instance, check_share, expected
from streaminfer.loadtest.arrivals import Arrivals, Instants, as_arrivals, check_run_s
from streaminfer.loadtest.report.report import Report, describe_machine
from streaminfer.loadtest.sending.sender import OnProgress, running, send
from streaminfer.loadtest.sending.sender_processes import send_from_processes

__all__ = ["run"]

DRAIN_S = 5.0
DRAIN_SLOS = 10.0


async def run(
    service: Any,
    *,
    arrivals: Arrivals | ArrayLike,
    inputs: Any,
    duration_s: float,
    slo_s: float,
    objective: float = 0.99,
    seed: int = 0,
    senders: int = 0,
    drain_s: float | None = None,
    name: str = "",
    progress: OnProgress | None = None,
) -> Report:
    """Send requests on a schedule, without waiting for responses, and report their latencies.

    Await it in the event loop of the service; in a script, call ``asyncio.run(run(...))``. If the service is a `Stack`
    that is not running, the run starts and stops it.

    Args:
        service: an object with ``async call(request)``, such as a `Stack`, or an async function of the inputs. With
            ``senders``, a function without arguments that returns one, importable from its module.
        arrivals: such as ``Poisson(200)``, or instants in seconds from the start, ascending.
        inputs: inputs of the requests: a sequence, used in turn; a function of the request's number; or one mapping for
            all requests. An element may be a `Sample`.
        duration_s: seconds during which requests are due.
        slo_s: seconds within which a response is on time.
        objective: share of requests that must be on time.
        seed: seed of the schedule.
        senders: number of processes that send, each its share of the schedule, for services on other machines or in
            other processes; 0: this event loop sends.
        drain_s: seconds to wait for responses after the last request; requests still in flight are then cancelled and
            count as ``unanswered``. ``None``: the larger of 5 and ten times ``slo_s``.
        name: name of the run, for the report.
        progress: called every second.

    Returns:
        The report; its latencies count from the instants at which requests were due.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """
    duration_s = check_run_s("duration_s", duration_s)
    slo_s = check_duration("slo_s", slo_s, positive=True)
    objective = check_share("objective", objective)
    seed = check_count("seed", seed, at_least=0)
    senders = check_count("senders", senders, at_least=0)
    check_instance("name", name, str, "a string")
    check_instance("progress", progress, lambda it: it is None or callable(it), "a function or None")
    drain_s = max(DRAIN_S, DRAIN_SLOS * slo_s) if drain_s is None else check_duration("drain_s", drain_s)
    process = as_arrivals(arrivals)
    instants = Instants(process.schedule(duration_s, seed))  # also checks those of a caller's own class
    due_s = instants.schedule(duration_s, seed)
    if not due_s.size:
        raise ValueError(expected("arrivals", f"at least one request within {duration_s:g} s", arrivals))
    began = time.time()
    if senders:
        record = await send_from_processes(
            service, inputs, due_s, senders, drain_s=drain_s, duration_s=duration_s, progress=progress
        )
    else:
        async with running(service) as started:
            record = await send(started, inputs, due_s, drain_s=drain_s, duration_s=duration_s, progress=progress)
    return Report(
        record,
        slo_s=slo_s,
        objective=objective,
        duration_s=duration_s,
        name=name,
        seed=seed,
        arrivals=repr(process),
        senders=senders,
        began=began,
        machine=describe_machine(),
    )
