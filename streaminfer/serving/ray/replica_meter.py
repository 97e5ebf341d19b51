"""`ReplicaMeter`: measures the load of a replica's stack, for the router and the autoscaler."""

import asyncio
import math

from streaminfer.errors import DeadlineExceeded, InvalidInput, Overloaded
from streaminfer.request import Request, Response
from streaminfer.serving.ray.autoscaling import ReplicaState
from streaminfer.serving.ray.headroom import LoadReport
from streaminfer.stack import Stack
from streaminfer.sync_layer import SyncLayer
from streaminfer.telemetry.objectives.slo import SLO
from streaminfer.telemetry.services import walk
from streaminfer.telemetry.telemetry import Telemetry

__all__ = ["ReplicaMeter", "burn_rate"]

_DECAY_NS = 2e9
"""Time after which the weight of a request is 1/e: several reports, so that one burst does not start a replica."""
_NEWEST = 1 / 32
"""Weight of the newest request in the moving averages of the durations."""
_BURN_WINDOW_S = 60.0
_PRIOR = 2.0
"""Successful requests to add to the recent ones, because one failure alone says little."""


class ReplicaMeter(SyncLayer):
    """Layer that measures the requests of a stack: queue delay, service time and utilization.

    A request that was rejected or ended at its deadline counts as if it was queued until its deadline. Overload is
    therefore visible even if the successful requests were queued only shortly. Other errors count as failures, unless
    the input was invalid or the caller cancelled the request.

    Attributes:
        workers: number of batches that can run at the same time.
    """

    fingerprint = ""  # the layer changes no response

    def __init__(self) -> None:
        self.workers = 1
        self._reports = 0
        self._in_flight = 0
        self._service_s = 0.0
        self._per_request_s = 0.0
        self._waited_s = 0.0
        self._request_weight = 0.0
        self._failed = 0.0
        self._busy_s = 0.0
        self._decayed_ns = 0

    def enter(self, request: Request, now_ns: int) -> int:  # noqa: ARG002 - required by the protocol
        """Count a request that arrives."""
        self._in_flight += 1
        return now_ns

    def exit(self, request: Request, token: int, outcome: Response | BaseException, now_ns: int) -> None:
        """Count a request that ends, and update the durations."""
        self._in_flight -= 1
        if isinstance(outcome, Response):
            timings = outcome.timings
            if timings is None or not timings.batch_size:
                self._learn((now_ns - token) / 1e9, (now_ns - token) / 1e9 / (self._in_flight + 1))
                self._wait(0.0, now_ns)
                return
            batch_s = (timings.inferred_ns - timings.started_ns) / 1e9
            share_s = batch_s / timings.batch_size
            self._learn((now_ns - timings.started_ns) / 1e9, share_s / self.workers)
            self._wait(timings.queued_s, now_ns)
            self._busy_s += share_s
        elif isinstance(outcome, (DeadlineExceeded, Overloaded)):
            until_ns = now_ns if request.deadline_ns is None else request.deadline_ns
            self._wait(max(until_ns - token, 0) / 1e9, now_ns)
        elif not isinstance(outcome, (InvalidInput, asyncio.CancelledError)):
            self._decay(now_ns)
            self._failed += 1.0

    def report(self, now_ns: int) -> LoadReport:
        """Return the report for the routers."""
        self._reports += 1
        self._decay(now_ns)
        succeeded = self._request_weight + _PRIOR
        success = succeeded / (succeeded + self._failed)
        return LoadReport(self._reports, self._service_s, self._per_request_s, self._in_flight, success)

    def state(self, now_ns: int, burn_rate: float) -> ReplicaState:
        """Return the report for the autoscaler."""
        self._decay(now_ns)
        utilization = self._busy_s / (_DECAY_NS / 1e9) / self.workers
        return ReplicaState(self._waited_s / max(self._request_weight, 1.0), burn_rate, utilization)

    def _learn(self, service_s: float, per_request_s: float) -> None:
        weight = _NEWEST if self._service_s else 1.0
        self._service_s += (service_s - self._service_s) * weight
        self._per_request_s += (per_request_s - self._per_request_s) * weight

    def _wait(self, seconds: float, now_ns: int) -> None:
        self._decay(now_ns)
        self._waited_s += seconds
        self._request_weight += 1.0

    def _decay(self, now_ns: int) -> None:
        factor = math.exp((self._decayed_ns - now_ns) / _DECAY_NS) if now_ns > self._decayed_ns else 1.0
        self._decayed_ns = max(now_ns, self._decayed_ns)
        self._waited_s *= factor
        self._request_weight *= factor
        self._failed *= factor
        self._busy_s *= factor


def burn_rate(stack: Stack) -> float:
    """Return the highest burn rate of the objectives in a stack over the last minute; 0.0 without objectives."""
    parts = (found.part for found in walk(stack, set()))
    objectives = [part.slo for part in parts if isinstance(part, Telemetry) and isinstance(part.slo, SLO)]
    return max((slo.burn_rate(min(_BURN_WINDOW_S, slo.period_s)) for slo in objectives), default=0.0)
