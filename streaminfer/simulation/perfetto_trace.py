"""Decision log as a Perfetto trace."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streaminfer.telemetry.perfetto.trace_builder import TraceBuilder

if TYPE_CHECKING:
    from streaminfer.simulation.decision_log import DecisionLog
    from streaminfer.telemetry.objectives.slo import SLO

__all__ = ["perfetto_trace"]

_ANNOTATIONS = ("rows", "left queued", "expected ms", "took ms", "succeeded")
_REQUEST = "request"
_OBJECTIVE = 0.99
"""Share of requests that must meet their deadline if no objective is given; the default of an `SLO`."""
_BURN_BINS = 128


def perfetto_trace(log: "DecisionLog", slo: "SLO | None" = None) -> bytes:
    """Return the trace of a log.

    Args:
        log: the decision log.
        slo: an objective on the same clock, for a counter of its burn rate; ``None``: an objective of 99 % for the
            log's own requests, which are bad events if they fail or miss their deadline.
    """
    trace = TraceBuilder("streaminfer batcher", [_REQUEST, *log.reasons, *log.drop_reasons], _ANNOTATIONS)
    in_batch = log.arrival_batches >= 0
    requests = trace.add_track("requests")
    numbers = np.arange(1, log.arrivals_ns.size + 1, dtype=np.uint64)  # an arrow's number must not be 0
    trace.add_instants(requests, [_REQUEST], log.arrivals_ns[in_batch], numbers[in_batch])
    trace.add_instants(requests, [_REQUEST], log.arrivals_ns[~in_batch])
    trace.add_instants(trace.add_track("dropped"), log.drop_reasons, log.drops_ns)
    _add_batches(trace, log, numbers[in_batch], log.arrival_batches[in_batch])
    # queue length before and after each release
    starts_ns, queued = log.batch_starts_ns.repeat(2), log.batch_queued.repeat(2)
    queued[::2] += log.batch_sizes
    trace.add_counts(trace.add_track("queued requests", is_counter=True), starts_ns, queued)
    if slo is None:
        name, (at_ns, rates) = f"burn rate of deadlines at {_OBJECTIVE:.0%}", _deadline_burn(log)
    else:
        name, history = "burn rate", slo.burn_history()
        at_ns = np.array([max(at_ns, 0) for at_ns, _ in history], np.int64)
        rates = np.array([rate for _, rate in history], np.float64)
    trace.add_counts(trace.add_track(name, is_counter=True), at_ns, rates)
    return bytes(trace)


def _deadline_burn(log: "DecisionLog") -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return instants, and for each the burn rate since the previous one, of the requests that ended in the log."""
    batches = log.arrival_batches
    ends_ns = np.where(batches >= 0, log.batch_ends_ns[batches] if log.batch_ends_ns.size else -1, -1)
    succeeded = log.batch_ok[batches] if log.batch_ok.size else np.zeros(batches.shape, bool)
    # requests that ran past their deadline are among the drops
    is_over = (log.limits_ns > 0) & (ends_ns > log.arrivals_ns + log.limits_ns)
    counted = (ends_ns >= 0) & ~is_over
    at_ns = np.concatenate([ends_ns[counted], log.drops_ns])
    if not at_ns.size:
        return at_ns, np.zeros(0)
    events = np.concatenate([np.ones(counted.sum()), log.drop_counts])
    bad = np.concatenate([~succeeded[counted], log.drop_counts])
    first_ns = int(at_ns.min())
    width_ns = max(-(-(int(at_ns.max()) + 1 - first_ns) // _BURN_BINS), 1)
    bins = (at_ns - first_ns) // width_ns
    ended = np.bincount(bins, events)
    rates = np.bincount(bins, bad) / np.maximum(ended, 1.0) / (1.0 - _OBJECTIVE)
    return first_ns + width_ns * np.arange(1, rates.size + 1), rates


def _add_batches(
    trace: TraceBuilder, log: "DecisionLog", numbers: NDArray[np.uint64], batches: NDArray[np.int64]
) -> None:
    workers = [trace.add_track(f"worker {row}") for row in range(int(log.batch_workers.max(initial=-1)) + 1)]
    by_batch = np.argsort(batches, kind="stable")
    bounds = np.searchsorted(batches[by_batch], np.arange(len(log.reasons) + 1)).tolist()
    flows = numbers[by_batch].tolist()
    columns = [log.batch_workers, log.batch_starts_ns, log.batch_ends_ns, log.batch_sizes, log.batch_queued]
    columns += [log.batch_expected_ns, log.batch_ok.astype(np.int64)]
    for at, (worker, start_ns, end_ns, size, queued, expected_ns, ok) in enumerate(
        zip(*(column.tolist() for column in columns), strict=True)
    ):
        annotations: dict[str, bool | float] = {"rows": size, "left queued": queued}
        if expected_ns:
            annotations["expected ms"] = expected_ns / 1e6
        if end_ns >= 0:
            annotations |= {"took ms": (end_ns - start_ns) / 1e6, "succeeded": bool(ok)}
        trace.add_slice(
            workers[worker],
            log.reasons[at],
            start_ns,
            end_ns if end_ns >= 0 else None,
            flows=flows[bounds[at] : bounds[at + 1]],
            annotations=annotations,
        )
