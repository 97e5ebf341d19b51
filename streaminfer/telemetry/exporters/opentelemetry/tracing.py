"""`Tracing`: a span per sampled request, linked to the span of its batch.

The layer makes a span when the request has ended, from instants that the stack measures in any case. A request that is
not sampled costs one look at the current context, and nothing when it ends. Spans hold no inputs, outputs, keys or
subjects.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

from streaminfer._internal.listeners import LISTENER_ERRORS, ListenerFailures
from streaminfer._internal.loading.extras import require
from streaminfer._internal.validation import check_number
from streaminfer.errors import StreamInferError
from streaminfer.request import Request, Response
from streaminfer.sync_layer import SyncLayer
from streaminfer.telemetry.exporters.histogram_points import Exemplar
from streaminfer.telemetry.exporters.opentelemetry.tracing_statistics import TracingStatistics
from streaminfer.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from opentelemetry import context, trace

    from streaminfer._request_cy import Timings
else:
    trace = require("opentelemetry.trace", extra="otel", purpose="Tracing")
    context = require("opentelemetry.context", extra="otel", purpose="Tracing")

__all__ = ["Tracing"]

_MAX_BATCHES = 256  # most recent batches that later requests can link to


class Tracing(SyncLayer):
    """Layer that traces requests with the OpenTelemetry API; place it directly inside `Telemetry`.

    A request is traced if the current span of its caller is sampled. Without a current span, it is traced with
    probability ``ratio``. In both cases the sampler of the provider must agree. The latency histogram of the stack gets
    the latest traced request of each bucket as an exemplar.

    Args:
        tracer: makes the spans; ``None``: a tracer of the global provider.
        ratio: share of the requests without a current span that are traced.

    Raises:
        MissingExtra: OpenTelemetry is not installed (``pip install 'streaminfer[otel]'``).
        TypeError, ValueError: ``ratio`` is not a share from 0 to 1.
    """

    fingerprint = ""  # the layer changes no response

    def __init__(self, tracer: trace.Tracer | None = None, *, ratio: float = 1.0) -> None:
        ratio = check_number("ratio", ratio, "a share from 0 to 1", lambda value: 0.0 <= value <= 1.0)
        self._tracer = tracer or trace.get_tracer("streaminfer")
        self._ratio = ratio
        self._random = random.Random().random  # noqa: S311 - a sample, not a secret
        # by the instants and the size of a batch: its span, and the offset from its instants to Unix time
        self._batches: dict[tuple[int, int, int], tuple[trace.SpanContext, int]] = {}
        self._exemplars: dict[int, Exemplar] = {}
        self._failures = ListenerFailures("streaminfer", "tracing")
        self._requests = 0
        self._batch_spans = 0

    def enter(self, request: Request, now_ns: int) -> Any:  # noqa: ARG002 - any request counts
        """Decide whether the request is traced."""
        current = context.get_current()
        caller = trace.get_current_span(current) if current else trace.INVALID_SPAN  # most contexts are empty
        if caller is trace.INVALID_SPAN:
            sampled = self._ratio > 0.0 and (self._ratio == 1.0 or self._random() < self._ratio)
        else:
            sampled = caller.get_span_context().trace_flags.sampled
        return (now_ns, current) if sampled else None

    def exit(self, request: Request, token: Any, outcome: Response | BaseException, now_ns: int) -> None:  # noqa: ARG002
        """Make the span of a request that is traced."""
        if token is None:
            return
        started_ns, parent = token
        try:
            self._make_span(started_ns, parent, outcome, now_ns)
        except LISTENER_ERRORS as failure:  # the SDK does not catch errors of span processors and samplers
            self._failures.report(self, "a request", failure)

    def statistics(self) -> TracingStatistics:
        """Return a frozen snapshot."""
        return TracingStatistics(
            requests=self._requests, batches=self._batch_spans, exemplars=tuple(self._exemplars.values())
        )

    def _make_span(
        self, started_ns: int, parent: context.Context, outcome: Response | BaseException, now_ns: int
    ) -> None:
        timings = outcome.timings if isinstance(outcome, Response | StreamInferError) else None
        key = None if timings is None else (timings.started_ns, timings.inferred_ns, timings.batch_size)
        batch = None if key is None else self._batches.get(key)
        # a pause between the two clock readings shifts the span: use the same offset for all spans of a batch
        to_unix_ns = time.time_ns() - now_ns if batch is None else batch[1]
        span = self._tracer.start_span("streaminfer.request", parent, start_time=started_ns + to_unix_ns)
        if span.is_recording():
            self._requests += 1
            self._describe(span, outcome)
            if timings is not None and key is not None:
                span.set_attribute("streaminfer.batch.size", timings.batch_size)
                span.set_attribute("streaminfer.queue.duration", timings.queued_s)
                if batch is None:
                    batch = self._batches[key] = self._make_batch(span, timings, to_unix_ns), to_unix_ns
                span.add_link(batch[0])
            seconds = (now_ns - started_ns) / 1e9
            traced = span.get_span_context()
            ids = trace.format_trace_id(traced.trace_id), trace.format_span_id(traced.span_id)
            exemplar = Exemplar(seconds, *ids, now_ns + to_unix_ns)
            if isinstance(outcome, Response):
                self._exemplars[exemplar.bucket] = exemplar
        span.end(now_ns + to_unix_ns)

    @staticmethod
    def _describe(span: trace.Span, outcome: Response | BaseException) -> None:
        if isinstance(outcome, BaseException):
            span.set_attribute("streaminfer.outcome", Telemetry.reason_of(outcome))
            span.set_attribute("error.type", type(outcome).__name__)
            span.set_status(trace.StatusCode.ERROR)
        else:
            span.set_attribute("streaminfer.outcome", "degraded" if outcome.degraded else "ok")
            span.set_attribute("streaminfer.source", str(outcome.source))

    def _make_batch(self, span: trace.Span, timings: Timings, to_unix_ns: int) -> trace.SpanContext:
        """Make the span of a batch, as a child of the span of its first traced request."""
        parent = trace.set_span_in_context(span)
        batch = self._tracer.start_span("streaminfer.batch", parent, start_time=timings.started_ns + to_unix_ns)
        batch.set_attribute("streaminfer.batch.size", timings.batch_size)
        batch.set_attribute("streaminfer.assembly.duration", timings.assembled_s)
        batch.set_attribute("streaminfer.inference.duration", timings.inferred_s)
        batch.end(timings.inferred_ns + to_unix_ns)
        self._batch_spans += 1
        while len(self._batches) >= _MAX_BATCHES:
            del self._batches[next(iter(self._batches))]
        return batch.get_span_context()

    def __repr__(self) -> str:
        return f"Tracing(ratio={self._ratio})"
