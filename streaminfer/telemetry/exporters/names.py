"""Names, units and help texts of every exported metric, and the field of the statistics that each one reads.

A metric has one name, dotted and without a prefix: ``batcher.queued`` is ``streaminfer_batcher_queued`` in Prometheus
and ``streaminfer.batcher.queued`` in OpenTelemetry. Statistics are found by the name of their class, so that this
module imports no other family. Every value has the labels ``service`` and ``layer``.
"""

from typing import Literal

import attrs

__all__ = ["INNER", "METRICS", "STACK_STATE", "Metric"]

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["", "seconds", "bytes", "ratio"]


@attrs.frozen(eq=False)
class Metric:
    """One family of series.

    Attributes:
        name: dotted, without the prefix ``streaminfer``.
        kind: ``"counter"``, ``"gauge"`` or ``"histogram"``.
        help: one sentence.
        fields: attributes of the statistics; a mapping gives a series for each of its keys.
        label: tells several fields, the keys of a mapping, or ``states`` apart; empty: there is one value.
        unit: ``"seconds"``, ``"bytes"``, ``"ratio"``, or empty for a plain number.
        states: values of a text; each is a series that is 1 while the text is this value, else 0.
        event: a change is worth a line in the log.
    """

    name: str
    kind: Kind
    help: str
    fields: tuple[str, ...]
    label: str = ""
    unit: Unit = ""
    states: tuple[str, ...] = ()
    event: bool = False

    @property
    def family(self) -> str:
        """Name of the family in Prometheus' formats: no ``_total``."""
        base = "streaminfer_" + self.name.replace(".", "_")
        return f"{base}_{self.unit}" if self.unit else base

    @property
    def prometheus(self) -> str:
        """Name of the series in Prometheus; those of a histogram have ``_bucket``, ``_sum`` and ``_count`` behind it."""
        return f"{self.family}_total" if self.kind == "counter" else self.family

    @property
    def opentelemetry(self) -> str:
        """Name in OpenTelemetry."""
        return f"streaminfer.{self.name}"

    @property
    def ucum(self) -> str:
        """Unit in OpenTelemetry, in the Unified Code for Units of Measure."""
        return {"seconds": "s", "bytes": "By"}.get(self.unit, "1")


def _counter(
    name: str, text: str, *fields: str, by: str = "", unit: Unit = "", event: bool = False
) -> Metric:
    return Metric(name, "counter", text, fields or (name.rpartition(".")[2],), by, unit, event=event)


def _gauge(
    name: str, text: str, *fields: str, by: str = "", unit: Unit = "", states: tuple[str, ...] = (), event: bool = False
) -> Metric:
    return Metric(name, "gauge", text, fields or (name.rpartition(".")[2],), by, unit, states, event)


def _histogram(name: str, text: str, *fields: str, by: str = "") -> Metric:
    return Metric(name, "histogram", text, fields, by, "seconds")


STACK_STATE = _gauge(
    "stack.state",
    "Whether the stack is in this state.",
    by="state",
    states=("new", "starting", "running", "stopping", "stopped"),
    event=True,
)

_BACKEND = (
    _counter("backend.batches", "Batches that succeeded."),
    _counter("backend.rows", "Requests in these batches."),
    _counter("backend.failed_batches", "Batches that failed or that all callers had left.", "errors", "cancelled", by="outcome"),
    _counter("backend.busy", "Time that workers spent on batches.", "busy_s", unit="seconds"),
    _gauge("backend.workers", "Batches that can run at the same time."),
)

METRICS: dict[str, tuple[Metric, ...]] = {
    "TelemetryStatistics": (
        _histogram("request.duration", "Time from the call of the service to its response.", "latency"),
        _histogram(
            "request.part.duration",
            "Parts of the time of requests that a batcher served.",
            "queue",
            "assembly",
            "inference",
            "delivery",
            by="part",
        ),
        _counter("requests", "Completed requests; the outcome is ok, degraded, cancelled or the class of the error.", "outcomes", by="outcome"),
        _gauge("requests.in_flight", "Requests that have not completed."),
        _gauge("server.part.duration", "Mean time of a part inside the model server.", "server_parts", by="part", unit="seconds"),
    ),
    "SloStatistics": (
        _counter("slo.events", "Events of the objective: good ones, and bad ones by their kind.", "totals", by="result"),
        _counter("slo.ignored", "Outcomes that were no events."),
        _gauge("slo.threshold", "Time within which a response is good.", "threshold_s", unit="seconds"),
        _gauge("slo.objective", "Share of events that must be good.", unit="ratio"),
        _gauge("slo.budget_remaining", "Share of the error budget of the period that is left.", unit="ratio"),
        _gauge("slo.burn_rate", "Burn rate of the error budget, by window in seconds.", "burn_rates", by="window", unit="ratio"),
        _gauge("slo.burning", "Whether the budget burns so fast that the service should do less.", event=True),
        _gauge("slo.alerts", "Alerts that fire now, by severity.", "firing", by="severity", event=True),
    ),
    "BatcherStatistics": (
        _counter(
            "batcher.requests",
            "Requests that left the batcher, by outcome.",
            "succeeded",
            "failed",
            "deadline_exceeded",
            "cancelled",
            "closed",
            by="outcome",
        ),
        _counter("batcher.rejected", "Requests that the batcher rejected, by reason.", by="reason", event=True),
        _counter("batcher.submitted", "Requests that reached the batcher."),
        _gauge("batcher.queued", "Requests that are not in a batch yet."),
        _gauge("batcher.running", "Requests in batches that run."),
        _gauge("batcher.running_batches", "Batches that run now."),
        _counter("batcher.batches", "Batches released, by reason.", "released", by="reason"),
        _counter("batcher.rows", "Requests in released batches."),
        _counter(
            "batcher.special_batches",
            "Batches that all callers left, that were sent ahead to a model with a queue, or sent again in parts.",
            "abandoned_batches",
            "pipelined",
            "split_batches",
            by="kind",
        ),
        _gauge("batcher.batch.duration", "Recent mean duration of a batch.", "batch_s", unit="seconds"),
        _gauge("batcher.memory_limit", "Most rows of a batch since one ran out of memory, by length bucket.", "memory_limits", by="bucket"),
    ),
    "CacheStatistics": (
        _counter("cache.lookups", "Lookups, by result.", "hits", "misses", "stale_hits", "negative_hits", by="result"),
        _counter("cache.stored", "Values stored, by what became of them.", "inserted", "replaced", "rejected", by="result"),
        _counter("cache.removed", "Entries that left the cache, by reason.", "evicted", "expired", "erased", "removed", by="reason"),
        _gauge("cache.entries", "Entries held, by kind.", "entries", "stale", "negative", by="kind"),
        _gauge("cache.size", "Bytes of fresh values.", unit="bytes"),
        _gauge("cache.held", "Bytes of all that is held.", "held_bytes", unit="bytes"),
        _counter("cache.listener_problems", "Events that no listener got, and errors of listeners.", "events_lost", "listener_errors", by="kind"),
    ),
    "FlightStatistics": (
        _counter(
            "cache.computations",
            "Single flight: attempts, callers that waited for another one's attempt, and what became of attempts.",
            "computations",
            "collapsed",
            "failures",
            "leader_changes",
            "abandoned",
            "refreshes",
            "refresh_failures",
            "not_stored",
            by="kind",
        ),
        _gauge("cache.computing", "Computations that run now.", "in_flight"),
    ),
    "TierUsage": (
        _counter(
            "cache.tier.reads", "Reads of a tier, by result.", "hits", "stale_hits", "misses", "read_timeouts", "discarded", by="result"
        ),
        _counter("cache.tier.writes", "Writes to a tier, by result.", "stored", "rejected", "dropped", "disallowed", by="result"),
        _gauge("cache.tier.pending", "Writes that are queued, and erasures not carried out.", "queued", "pending", by="kind"),
    ),
    "TierStatistics": (
        _counter(
            "cache.tier.operations",
            "Operations on the medium of a tier, by result.",
            "hits",
            "misses",
            "stored",
            "rejected",
            "skipped",
            "errors",
            "unreadable",
            "evicted",
            "erased",
            "purged",
            "rebuilds",
            by="result",
        ),
        _gauge("cache.tier.entries", "Entries on the medium."),
        _gauge("cache.tier.size", "Bytes on the medium.", "size_bytes", unit="bytes"),
    ),
    "BreakerStatistics": (
        _gauge("breaker.state", "Whether the breaker is in this state.", by="state", states=("closed", "open", "half_open"), event=True),
        _gauge(
            "breaker.mode",
            "Whether the breaker is in this mode.",
            by="mode",
            states=("automatic", "metrics_only", "disabled", "forced_open"),
            event=True,
        ),
        _counter("breaker.calls", "Outcomes, by kind.", "succeeded", "failed", "ignored", "stale_permits", by="outcome"),
        _counter("breaker.permitted", "Permits given."),
        _counter("breaker.rejected", "Calls rejected."),
        _counter("breaker.slow", "Outcomes that were slow.", "slow_calls"),
        _counter("breaker.trips", "Times that it opened by itself.", event=True),
        _counter("breaker.events_lost", "Events that no listener got."),
        _gauge("breaker.window", "Outcomes that the present state is judged by.", "calls", "failures", "slow", by="kind"),
        _gauge("breaker.probes", "Probes that have not come back.", "half_open_in_flight"),
        _gauge("breaker.retry_after", "Time until a call may pass.", "retry_after_s", unit="seconds"),
        _gauge("breaker.share", "Share of the calls that pass.", unit="ratio"),
        _gauge("breaker.consecutive_trips", "Trips since it was last closed."),
    ),
    "LimitStatistics": (
        _gauge("limit.limit", "Calls that may be in flight, as it has learned."),
        _gauge("limit.allowed", "Calls that may be in flight now."),
        _gauge("limit.in_flight", "Calls in flight."),
        _gauge("limit.queued", "Calls that wait for a permit."),
        _counter(
            "limit.calls",
            "Calls, by outcome.",
            "succeeded",
            "deadline_exceeded",
            "inner_rejected",
            "ignored",
            "cancelled",
            by="outcome",
        ),
        _counter("limit.rejected", "Calls that the limit rejected, by reason.", "rejected", "infeasible", by="reason", event=True),
        _counter("limit.stale_permits", "Permits that came back and were not out."),
        _counter("limit.windows", "Decisions made."),
        _gauge("limit.target", "Time that a call should take at most.", "target_s", unit="seconds"),
        _gauge("limit.queue_delay", "Mean time queued in the last window.", "queue_delay_s", unit="seconds"),
        _gauge("limit.service", "Mean service time of the last window.", "service_s", unit="seconds"),
        _gauge("limit.completion_rate", "Completions per second while busy.", "rate_per_s"),
        _gauge("limit.retry_after", "Time in which the calls in flight should complete.", "retry_after_s", unit="seconds"),
        _gauge("limit.burning", "Whether the SLO burned at the last decision.", event=True),
    ),
    "RateLimitStatistics": (
        _counter("rate_limit.requests", "Requests, by decision.", "admitted", "rejected", by="decision"),
        _counter("rate_limit.shared", "Requests that the bucket shared by tenants judged."),
        _gauge("rate_limit.tenants", "Tenants with a bucket of their own."),
    ),
    "RetryStatistics": (
        _counter("retry.requests", "Requests, each counted once."),
        _counter("retry.retries", "Attempts beyond the first."),
        _counter("retry.succeeded", "Requests whose response came from a later attempt.", "succeeded_after_retry"),
        _counter("retry.not_retried", "Failures that were not retried, by reason.", by="reason"),
        _gauge("retry.left", "Retries that may be made now."),
        _gauge("retry.attempt.duration", "Usual time of a successful attempt.", "usual_s", unit="seconds"),
    ),
    "HedgeStatistics": (
        _counter("hedge.requests", "Requests, extra ones not included."),
        _counter("hedge.hedges", "Extra requests."),
        _counter("hedge.won", "Requests whose response came from an extra one."),
        _counter("hedge.not_sent", "Extra requests that were not sent, by reason.", "throttled", "rejected", "infeasible", by="reason"),
        _gauge("hedge.cancelling", "Losing requests that have not ended yet."),
        _gauge("hedge.delay", "Time after which a request is hedged.", "delay_s", unit="seconds"),
    ),
    "RouterStatistics": (
        _counter("router.requests", "Requests, by outcome.", "succeeded", "defaulted", "failed", "cancelled", by="outcome"),
        _counter("router.degraded", "Degraded responses of routes."),
        _counter("router.deadline_misses", "Requests without a route's response by the deadline."),
        _counter("router.fallbacks", "Responses that did not come from the best route, by its reason.", "reasons", by="reason"),
        _counter("router.cost", "Cost of the responses, in the user's unit."),
        _gauge("router.in_flight", "Requests now."),
        _gauge("router.mean_quality", "Mean quality of the responses."),
    ),
    "RouteStatistics": (
        _counter(
            "route.attempts",
            "Attempts at a route, by outcome.",
            "succeeded",
            "failed",
            "attempt_timeouts",
            "rejected",
            "cancelled",
            by="outcome",
        ),
        _counter("route.deadline_misses", "Responses of a route after the deadline."),
        _counter("route.skipped", "Times that a route gave no response, by reason.", by="reason"),
        _counter("route.probes", "Copies of requests that were sent to a slow route."),
        _counter("route.cuts", "Times that the share of a route was cut."),
        _counter("route.flaps", "Times that a route lost all its traffic.", event=True),
        _gauge("route.share", "Part of the traffic that a route is offered.", unit="ratio", event=True),
        _gauge("route.closed", "Whether a route is offered nothing because the budget burns.", event=True),
        _gauge("route.in_flight", "Attempts at a route now."),
        _gauge("route.quality", "Quality of a response of the route."),
        _gauge("route.duration", "Recent mean time of good responses.", "latency_s", unit="seconds"),
    ),
    "ReplicasStatistics": (
        _counter("replicas.retried", "Requests that were sent to a second replica."),
        _counter("replicas.panics", "Attempts at an ejected replica because there was no other.", event=True),
        _counter("replicas.probes", "Probes of the health check, and failed ones.", "probes", "failed_probes", by="kind"),
        _counter("replicas.lookups", "Lookups of the discovery, and failed ones.", "lookups", "failed_lookups", by="kind"),
        _gauge("replicas.ejected", "Replicas that are ejected.", event=True),
    ),
    "ReplicaStatistics": (
        _gauge(
            "replica.state",
            "Whether the replica is in this state.",
            by="state",
            states=("active", "slow_start", "probing", "ejected", "unhealthy", "draining"),
            event=True,
        ),
        _counter("replica.attempts", "Attempts at a replica that ended, by outcome.", "succeeded", "failed", "rejected", by="outcome"),
        _counter("replica.started", "Attempts at a replica.", "attempts"),
        _counter("replica.ejections", "Times that a replica was ejected."),
        _gauge("replica.in_flight", "Attempts at a replica now."),
        _gauge("replica.weight", "Share of a replica among equally fast ones."),
        _gauge("replica.duration", "Decaying mean of the latency.", "latency_s", unit="seconds"),
        _gauge("replica.expected", "Time that the next request would take.", "expected_s", unit="seconds"),
        _gauge("replica.success", "Decaying share of attempts that succeeded.", unit="ratio"),
        _gauge("replica.returns_in", "Time until the ejection ends.", "returns_in_s", unit="seconds"),
    ),
    "CanaryStatistics": (_gauge("canary.share", "Share of the requests that the canary is given.", unit="ratio", event=True),),
    "SideStatistics": (
        _counter("canary.requests", "Requests of a side that completed, by outcome.", "succeeded", "failed", "cancelled", by="outcome"),
        _counter("canary.started", "Requests that a side was given.", "requests"),
    ),
    "ShadowStatistics": (
        _counter("shadow.sent", "Copies that were sent."),
        _counter("shadow.copies", "Copies that ended, by outcome.", "succeeded", "failed", "cancelled", by="outcome"),
        _counter("shadow.skipped", "Requests that were not copied, by reason.", by="reason"),
        _gauge("shadow.in_flight", "Copies that have not ended."),
    ),
    "BackendStatistics": _BACKEND,
    "TritonStatistics": (
        *_BACKEND,
        _gauge("backend.round_trip", "Mean time of a call that completed.", "round_trip_s", unit="seconds"),
        _counter("backend.split_batches", "Batches that were sent again in halves."),
    ),
    "ServerStatistics": (
        _counter("server.requests", "Requests of all clients that the model server completed, or failed.", "requests", "failures", by="kind"),
        _counter("server.rows", "Rows in completed requests."),
        _counter("server.executions", "Runs of the model."),
    ),
}
"""Metrics by the class of the statistics."""

INNER: dict[str, tuple[tuple[str, str], ...]] = {
    "TelemetryStatistics": (("slo", "slo"),),
    "CacheStatistics": (("flights", ""), ("tiers", "tier")),
    "TierUsage": (("tier", ""),),
    "RouterStatistics": (("routes", "route"),),
    "ReplicasStatistics": (("replicas", "replica"),),
    "CanaryStatistics": (("stable", "side"), ("canary", "side")),
    "TritonStatistics": (("server", ""),),
}
"""Statistics inside statistics: field, and label that has the name of each; empty: no label. One without a name has
that of its field."""
