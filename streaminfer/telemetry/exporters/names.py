"""Names, units and help texts of every exported metric, and the fields of the statistics that it reads.

A metric has one dotted name without a prefix: ``batcher.queued`` is ``streaminfer_batcher_queued`` in Prometheus and
``streaminfer.batcher.queued`` in OpenTelemetry. The table finds statistics by the name of their class, so this module
imports no other package. Every value has the labels ``service`` and ``layer``.
"""

from streaminfer.telemetry.exporters.metric import Metric, counter, gauge, histogram, state

__all__ = ["CREATED", "INNER", "LABELED", "LATENCY", "METRICS", "SHARED", "STACK_STATE"]

STACK_STATE = state("stack.state", "new starting running stopping stopped", "stack_state")

LATENCY = histogram("request.duration", "Time from the call of the service to its response.", "latency")

_BACKEND = (
    counter("backend.batches", "Batches that succeeded."),
    counter("backend.rows", "Requests in these batches."),
    counter(
        "backend.failed_batches", "Batches that failed or that all callers had left.", "errors cancelled", by="outcome"
    ),
    counter("backend.busy", "Time that workers spent on batches.", "busy_s"),
    gauge("backend.workers", "Batches that can run at the same time."),
)

METRICS: dict[str, tuple[Metric, ...]] = {
    "TelemetryStatistics": (
        LATENCY,
        histogram(
            "request.part.duration",
            "Parts of the time of requests that a batcher served.",
            "queue assembly inference delivery",
            by="part",
        ),
        counter(
            "requests",
            "Completed requests; the outcome is ok, degraded, cancelled or the class of the error.",
            "outcomes",
            by="outcome",
        ),
        gauge("requests.in_flight", "Requests that have not completed."),
        gauge(
            "server.part.duration",
            "Mean time of a part inside the model server.",
            "server_parts",
            by="part",
            unit="seconds",
        ),
    ),
    "LabeledStatistics": (
        histogram("request.labeled.duration", "Latency of requests by the labels of their telemetry.", "latency"),
        counter("requests.labeled", "Completed requests by these labels and by outcome.", "outcomes", by="outcome"),
    ),
    "WorkerStatistics": (
        histogram(
            "workers.duration", "Durations that all workers of a server counted, by histogram.", "durations", by="of"
        ),
    ),
    "SloStatistics": (
        counter("slo.events", "Events of the objective: good ones, and bad ones by their kind.", "totals", by="result"),
        counter("slo.ignored", "Outcomes that were no events."),
        gauge("slo.threshold", "Time within which a response is good.", "threshold_s"),
        gauge("slo.objective", "Share of events that must be good.", unit="ratio"),
        gauge("slo.budget_remaining", "Share of the error budget of the period that is left.", unit="ratio"),
        gauge(
            "slo.burn_rate",
            "Burn rate of the error budget, by window in seconds.",
            "burn_rates",
            by="window",
            unit="ratio",
        ),
        gauge("slo.burning", "Whether the budget burns so fast that the service should do less.", event=True),
        gauge("slo.alerts", "Alerts that fire now", "firing", by="severity", event=True),
    ),
    "BatcherStatistics": (
        counter(
            "batcher.requests",
            "Requests that left the batcher",
            "succeeded failed deadline_exceeded cancelled closed",
            by="outcome",
        ),
        counter("batcher.rejected", "Requests that the batcher rejected", by="reason", event=True),
        counter("batcher.submitted", "Requests that reached the batcher."),
        gauge("batcher.queued", "Requests that are not in a batch yet."),
        gauge("batcher.running", "Requests in batches that run."),
        gauge("batcher.running_batches", "Batches that run now."),
        counter("batcher.batches", "Batches released", "released", by="reason"),
        counter("batcher.rows", "Requests in released batches."),
        counter(
            "batcher.special_batches",
            "Batches that all callers left, that were sent ahead to a model with a queue, or sent again in parts.",
            "abandoned_batches pipelined split_batches",
            by="kind",
        ),
        gauge("batcher.batch.duration", "Recent mean duration of a batch.", "batch_s"),
        gauge(
            "batcher.memory_limit",
            "Most rows of a batch since one ran out of memory, by length bucket.",
            "memory_limits",
            by="bucket",
        ),
    ),
    "CacheStatistics": (
        counter("cache.lookups", "Lookups", "hits misses stale_hits negative_hits", by="result"),
        counter("cache.stored", "Values stored, by what became of them.", "inserted replaced rejected", by="result"),
        counter("cache.removed", "Entries that left the cache", "evicted expired erased removed", by="reason"),
        gauge("cache.entries", "Entries held", "entries stale negative", by="kind"),
        gauge("cache.size", "Bytes of fresh values.", unit="bytes"),
        gauge("cache.held", "Bytes of all that is held.", "held_bytes", unit="bytes"),
        counter(
            "cache.listener_problems",
            "Events that no listener got, and errors of listeners.",
            "events_lost listener_errors",
            by="kind",
        ),
    ),
    "FlightStatistics": (
        counter(
            "cache.computations",
            "Single flight: attempts, callers that waited for another one's attempt, and what became of attempts.",
            "computations collapsed failures leader_changes abandoned refreshes refresh_failures not_stored",
            by="kind",
        ),
        gauge("cache.computing", "Computations that run now.", "in_flight"),
    ),
    "TierUsage": (
        counter("cache.tier.reads", "Reads of a tier", "hits stale_hits misses read_timeouts discarded", by="result"),
        counter("cache.tier.writes", "Writes to a tier", "stored rejected dropped disallowed", by="result"),
        gauge(
            "cache.tier.pending", "Writes that are queued, and erasures not carried out.", "queued pending", by="kind"
        ),
    ),
    "TierStatistics": (
        counter(
            "cache.tier.operations",
            "Operations on the medium of a tier",
            "hits misses stored rejected skipped errors unreadable evicted erased purged rebuilds",
            by="result",
        ),
        gauge("cache.tier.entries", "Entries on the medium."),
        gauge("cache.tier.size", "Bytes on the medium.", "size_bytes", unit="bytes"),
    ),
    "BreakerStatistics": (
        state("breaker.state", "closed open half_open"),
        state("breaker.mode", "automatic metrics_only disabled forced_open"),
        counter("breaker.calls", "Outcomes, by kind.", "succeeded failed ignored stale_permits", by="outcome"),
        counter("breaker.permitted", "Permits given."),
        counter("breaker.rejected", "Calls rejected."),
        counter("breaker.slow", "Outcomes that were slow.", "slow_calls"),
        counter("breaker.trips", "Times that the outcomes of calls opened it.", event=True),
        counter("breaker.events_lost", "Events that no listener got."),
        gauge("breaker.window", "Outcomes that the present state is judged by.", "calls failures slow", by="kind"),
        gauge("breaker.probes", "Probes that have not come back.", "half_open_in_flight"),
        gauge("breaker.retry_after", "Time until a call may pass.", "retry_after_s"),
        gauge("breaker.share", "Share of the calls that pass.", unit="ratio"),
        gauge("breaker.consecutive_trips", "Trips since it was last closed."),
    ),
    "LimitStatistics": (
        gauge("limit.limit", "Calls that may be in flight, as it has learned."),
        gauge("limit.allowed", "Calls that may be in flight now."),
        gauge("limit.in_flight", "Calls in flight."),
        gauge("limit.queued", "Calls that wait for a permit."),
        counter("limit.calls", "Calls", "succeeded deadline_exceeded inner_rejected ignored cancelled", by="outcome"),
        counter("limit.rejected", "Calls that the limit rejected", "rejected infeasible", by="reason", event=True),
        counter("limit.stale_permits", "Permits that came back and were not out."),
        counter("limit.windows", "Decisions made."),
        gauge("limit.target", "Time that a call should take at most.", "target_s"),
        gauge("limit.queue_delay", "Mean time queued in the last window.", "queue_delay_s"),
        gauge("limit.service", "Mean service time of the last window.", "service_s"),
        gauge("limit.completion_rate", "Completions per second while busy.", "rate_per_s"),
        gauge("limit.retry_after", "Time in which the calls in flight should complete.", "retry_after_s"),
        gauge("limit.burning", "Whether the SLO burned at the last decision.", event=True),
    ),
    "RateLimitStatistics": (
        counter("rate_limit.requests", "Requests", "admitted rejected", by="decision"),
        counter("rate_limit.shared", "Requests that the bucket shared by tenants judged."),
        gauge("rate_limit.tenants", "Tenants with a bucket of their own."),
    ),
    "RetryStatistics": (
        counter("retry.requests", "Requests, each counted once."),
        counter("retry.retries", "Attempts beyond the first."),
        counter("retry.succeeded", "Requests whose response came from a later attempt.", "succeeded_after_retry"),
        counter("retry.not_retried", "Failures that were not retried", by="reason"),
        gauge("retry.left", "Retries that may be made now."),
        gauge("retry.attempt.duration", "Usual time of a successful attempt.", "usual_s"),
    ),
    "HedgeStatistics": (
        counter("hedge.requests", "Requests, extra ones not included."),
        counter("hedge.hedges", "Extra requests."),
        counter("hedge.won", "Requests whose response came from an extra one."),
        counter("hedge.not_sent", "Extra requests that were not sent", "throttled rejected infeasible", by="reason"),
        gauge("hedge.cancelling", "Losing requests that have not ended yet."),
        gauge("hedge.delay", "Time after which a request is hedged.", "delay_s"),
    ),
    "RouterStatistics": (
        counter("router.requests", "Requests", "succeeded defaulted failed cancelled", by="outcome"),
        counter("router.degraded", "Degraded responses of routes."),
        counter("router.deadline_misses", "Requests without a route's response by the deadline."),
        counter(
            "router.fallbacks",
            "Responses that did not come from the best route, by its reason.",
            "reasons",
            by="reason",
        ),
        counter("router.cost", "Cost of the responses, in the user's unit."),
        gauge("router.in_flight", "Requests now."),
        gauge("router.mean_quality", "Mean quality of the responses."),
    ),
    "RouteStatistics": (
        counter(
            "route.attempts",
            "Attempts at a route",
            "succeeded failed attempt_timeouts rejected cancelled",
            by="outcome",
        ),
        counter("route.deadline_misses", "Responses of a route after the deadline."),
        counter("route.skipped", "Times that a route gave no response", by="reason"),
        counter("route.probes", "Copies of requests that were sent to a slow route."),
        counter("route.cuts", "Times that the share of a route was cut."),
        counter("route.flaps", "Times that a route lost all its traffic.", event=True),
        gauge("route.share", "Part of the traffic that a route is offered.", unit="ratio", event=True, normal=1.0),
        gauge("route.closed", "Whether a route is offered nothing because the budget burns.", event=True),
        gauge("route.in_flight", "Attempts at a route now."),
        gauge("route.quality", "Quality of a response of the route."),
        gauge("route.duration", "Recent mean time of good responses.", "latency_s"),
    ),
    "ReplicasStatistics": (
        counter("replicas.retried", "Requests that were sent to a second replica."),
        counter("replicas.panics", "Attempts at an ejected replica because there was no other.", event=True),
        counter("replicas.lost_states", "States that ended with a removed replica, for want of a place.", event=True),
        counter("replicas.probes", "Probes of the health check, and failed ones.", "probes failed_probes", by="kind"),
        counter("replicas.lookups", "Lookups of the discovery, and failed ones.", "lookups failed_lookups", by="kind"),
        gauge("replicas.ejected", "Replicas that are ejected.", event=True),
    ),
    "ReplicaStatistics": (
        state("replica.state", "active slow_start probing ejected unhealthy draining"),
        counter("replica.attempts", "Attempts at a replica that ended", "succeeded failed rejected", by="outcome"),
        counter("replica.started", "Attempts at a replica.", "attempts"),
        counter("replica.ejections", "Times that a replica was ejected."),
        gauge("replica.in_flight", "Attempts at a replica now."),
        gauge("replica.weight", "Share of a replica among equally fast ones."),
        gauge("replica.duration", "Decaying mean of the latency.", "latency_s"),
        gauge("replica.expected", "Time that the next request would take.", "expected_s"),
        gauge("replica.success", "Decaying share of attempts that succeeded.", unit="ratio"),
        gauge("replica.returns_in", "Time until the ejection ends.", "returns_in_s"),
    ),
    "CanaryStatistics": (
        gauge("canary.share", "Share of the requests that the canary is given.", unit="ratio", event=True),
    ),
    "SideStatistics": (
        counter("canary.requests", "Requests of a side that completed", "succeeded failed cancelled", by="outcome"),
        counter("canary.started", "Requests that a side was given.", "requests"),
    ),
    "ShadowStatistics": (
        counter("shadow.sent", "Copies that were sent."),
        counter("shadow.copies", "Copies that ended", "succeeded failed cancelled", by="outcome"),
        counter("shadow.skipped", "Requests that were not copied", by="reason"),
        gauge("shadow.in_flight", "Copies that have not ended."),
    ),
    "CostStatistics": (
        counter("cost.bill", "Amount paid for devices, by use; a batch is in it when it ends.", "settled", by="use"),
        counter("cost.failed", "Requests that got no response."),
        counter("cost.overflowed", "Charges and responses of models, tenants, streams or routes beyond the bound."),
        gauge("cost.per_1000_on_time", "The bill for 1,000 responses on time."),
        gauge("cost.saved_by_cache", "Amount that cached responses would have cost."),
    ),
    "CostRow": (
        counter("cost.charged", "Amount of the shares of batches, by model or by route.", "cost"),
        counter("cost.rows", "Rows in batches that ended."),
        counter("cost.responses", "Responses", "responses on_time degraded cached", by="kind"),
    ),
    "StreamSessionStatistics": (
        histogram("session.result.age", "Age of the results at their delivery, since the capture.", "ages"),
        counter("session.results", "Results that were delivered", "delivered failed", by="outcome"),
        counter("session.dropped", "Frames of all streams without a result", by="reason", event=True),
        gauge("session.frames", "Frames of all streams now", "waiting in_flight", by="place"),
        gauge("session.open_streams", "Streams that have not ended."),
        counter("session.ended_streams", "Streams that have ended."),
    ),
    "StreamStatistics": (
        counter("stream.results", "Results of an open stream", "delivered failed", by="outcome"),
        counter("stream.dropped", "Frames of an open stream without a result", by="reason"),
        gauge("stream.frames", "Frames of an open stream now", "waiting in_flight", by="place"),
    ),
    "StatefulStatistics": (
        gauge("state.streams", "Streams that have state, or a step in flight."),
        gauge("state.rows", "Rows of the arena in use."),
        gauge("state.size", "Bytes of all states.", "bytes", unit="bytes"),
        counter(
            "state.batches",
            "Batches whose states were gathered, and batches of the streams of an earlier one.",
            "gathers sticky_batches",
            by="kind",
        ),
        counter("state.copied_rows", "States that were copied."),
        counter("state.expired", "Streams that were idle for too long."),
        counter("state.rejected", "Rows without a stream, or beyond the most streams.", event=True),
        counter("state.restarts", "Times that all streams began again.", event=True),
    ),
    "SourceStatistics": (
        counter("source.frames", "Frames, by what became of them.", "delivered dropped skipped corrupt", by="result"),
        counter("source.reconnects", "Connections after the first."),
        counter("source.silence", "Silence in place of lost packets.", "silence_s"),
        gauge("source.waiting", "Frames in the buffer."),
        gauge("source.connected", "Whether there is a connection, or an open file.", event=True, normal=1.0),
    ),
    "TracingStatistics": (counter("tracing.spans", "Spans", "requests batches", by="kind"),),
    "DeviceStatistics": (
        gauge("device.running", "Batches that run on a shared device now."),
        gauge("device.concurrency", "Batches that may run on it at once."),
    ),
    "DeviceModelStatistics": (
        counter("device.batches", "Batches of a model that began on a shared device."),
        counter("device.busy", "Time for which its batches ran; of several at once each counts.", "busy_s"),
        counter("device.waits", "Turns of other models while it had a batch to send."),
        gauge("device.longest_wait", "The longest that it had a batch to send before its turn came.", "longest_wait_s"),
        counter("device.promoted", "Batches of the background that continued at the usual priority."),
        counter("device.loads", "Loads of the model into the device's memory."),
        counter("device.load", "Time for which it was being loaded.", "load_s"),
        gauge(
            "device.slowdown",
            "How many times as long a batch takes beside one of another model.",
            "slowdowns",
            by="beside",
        ),
    ),
    "BackendStatistics": _BACKEND,
    "TritonStatistics": (
        *_BACKEND,
        gauge("backend.round_trip", "Mean time of a call that completed.", "round_trip_s"),
        counter("backend.split_batches", "Batches that were sent again in halves."),
    ),
    "ServerStatistics": (
        counter(
            "server.requests",
            "Requests of all clients that the model server completed, or failed.",
            "requests failures",
            by="kind",
        ),
        counter("server.rows", "Rows in completed requests."),
        counter("server.executions", "Runs of the model."),
    ),
}
"""Metrics by the class of the statistics."""

SHARED = frozenset({"DeviceStatistics"})
"""Statistics of an object that several parts share, such as a device; they are read once per ``number``."""

LABELED = frozenset({"CostStatistics", "LabeledStatistics"})
"""Statistics with a ``labels`` attribute."""

CREATED = frozenset({"WorkerStatistics"})
"""Statistics with a ``created_ns`` attribute: counts of other processes may be older than this process."""

INNER: dict[str, tuple[tuple[str, str], ...]] = {
    "TelemetryStatistics": (("slo", "slo"), ("labeled", "")),
    "CacheStatistics": (("flights", ""), ("tiers", "tier")),
    "BatcherStatistics": (("device", "device"),),
    "DeviceStatistics": (("models", "model"),),
    "TierUsage": (("tier", ""),),
    "RouterStatistics": (("routes", "route"),),
    "ReplicasStatistics": (("replicas", "replica"),),
    "CostStatistics": (("models", "model"), ("routes", "route")),
    "CanaryStatistics": (("stable", "side"), ("canary", "side")),
    "StreamSessionStatistics": (("streams", "stream"),),
    "TritonStatistics": (("server", ""),),
}
"""Statistics inside statistics: the field, and the label for the name of each; an empty string means no label. Inner
statistics without a name get the name of the field."""
