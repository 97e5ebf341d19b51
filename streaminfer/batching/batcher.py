"""`AdaptiveBatcher`: settings of a batcher, and the wrapping of backends and functions."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from streaminfer._internal.validation import (
    check_choice,
    check_clock,
    check_count,
    check_duration,
    check_instance,
    check_number,
    expected,
)
from streaminfer._runtime.wrapped_kind import check_no_generator
from streaminfer.protocols import Backend, Capabilities, Clock, Node, adapt, check_infer, is_backend, is_service
from streaminfer.request import timeout_ns

if TYPE_CHECKING:
    from streaminfer.batching.assembly.assembler import Assembler
    from streaminfer.batching.assembly.buckets import Buckets
    from streaminfer.batching.batched_function import BatchedFunction
    from streaminfer.batching.batched_service import BatchedService
    from streaminfer.batching.batcher_statistics import BatcherStatistics
    from streaminfer.batching.device.device import Device
    from streaminfer.batching.planner.pipelining import PipelineOverhead
    from streaminfer.batching.policy import Policy, PolicyName
    from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime
    from streaminfer.batching.service_time.service_time import ServiceTime
    from streaminfer.simulation.decision_log import DecisionLog

__all__ = ["AdaptiveBatcher"]

_LARGEST = 2**31 - 1
_DOUBTFUL_SLO_S = 10  # a whole number from here on may have been meant as milliseconds
_AS_BEFORE: Any = object()


class AdaptiveBatcher(Node):
    """Layer that turns a backend or a batch function into a service of single requests.

    Requests that are queued while a worker is busy form the next batch. Batches therefore grow with the load, and a
    single request is not delayed. The batcher learns the durations of batches from those that ran. If not all requests
    can be on time, it plans the batches so that most are, and rejects at once the requests that cannot be. Each request
    completes by its deadline, even if the model is slow, as long as the model does not block the event loop.

    Args:
        max_batch_size: the largest batch that the model gets.
        slo_s: latency objective in seconds, the deadline of requests without one. ``None``: such requests are batched
            for throughput and can stay queued without limit.
        max_queue_size: how many requests may be queued. A request for a full queue is rejected with ``Overloaded``; but
            if it is more urgent than the least urgent queued one, that one is shed instead.
        max_queue_delay_s: with ``policy="greedy"``, how long the oldest request may be queued for a fuller batch.
        max_in_flight: how many batches may run at once: the number of workers (sessions, threads, replicas) of the
            backend. ``None``: the backend's ``queued_workers``, read at each start, or 1 if it has none.
        policy: ``"lookahead"`` plans batches so that most requests are on time; ``"greedy"`` sends all queued requests
            when a worker is free, or after ``max_queue_delay_s``.
        buckets: for inputs of varying length (text, audio), `Buckets` or their lengths: rows are padded to the smallest
            length that fits, and only rows of one length share a batch.
        max_batch_bytes: the most bytes of inputs in a batch, padding included.
        row_cost: with ``max_batch_cost``, a function that returns the cost of a request's row, a number ≥ 0. It gets
            the inputs of the request, as arrays if ``stack``, and runs once per request, on the event loop.
        max_batch_cost: the largest total cost of the rows of a batch, above 0. A request that alone costs more is
            rejected with ``InvalidInput``.
        preferred_sizes: for backends compiled for some batch sizes: the only sizes that the model gets, ascending.
            Smaller batches are padded with copies of a row, whose results are dropped. Not with a model that has
            outputs of the whole batch.
        service_time: with ``policy="lookahead"``, known durations of batches, from which learning continues; with
            ``buckets``, a mapping of bucket length to these. ``None``: learned from the first batch on.
        stack: give the model one array (or mapping of arrays) with a new batch axis; ``False``: a list of the inputs of
            the requests.
        fair: streams take turns when batches form: no request waits for the backlog of another ``stream_id``, and a
            full queue sheds a request of the longest backlog. A mapping of stream id to weight (others have weight 1)
            gives some streams a larger share of the turns. Requests without a stream count as one stream.
        device: the `Device` on which this batcher takes turns with others; ``None``: it shares no device.
        clock: returns monotonic nanoseconds; ``None``: the `Stack`'s clock, else ``time.monotonic_ns``.

    Attributes:
        service_time: the `LearnedServiceTime`, or with ``buckets`` a mapping of bucket length to one; ``None`` until
            a policy learns.

    Raises:
        TypeError, ValueError: an argument has the wrong type or is out of range.

    Example:
        >>> batcher = AdaptiveBatcher(max_batch_size=32, slo_s=0.5)
        >>> predict = batcher.wrap(lambda x: x * 2)  # x: (batch, ...) in, one result per row out
        >>> import asyncio
        >>> async def main():
        ...     return await asyncio.gather(predict(1.0), predict(2.0, timeout_s=5.0))
        >>> [float(y) for y in asyncio.run(main())]
        [2.0, 4.0]
    """

    needs = "backend"
    """Kind of object that a `Stack` must put inside this layer."""

    def __init__(
        self,
        *,
        max_batch_size: int,
        slo_s: float | None = None,
        max_queue_size: int = 1024,
        max_queue_delay_s: float = 0.0,
        max_in_flight: int | None = None,
        policy: PolicyName = "lookahead",
        buckets: Buckets | Sequence[int] | None = None,
        max_batch_bytes: int | None = None,
        row_cost: Callable[[Any], float] | None = None,
        max_batch_cost: float | None = None,
        preferred_sizes: Sequence[int] | None = None,
        service_time: ServiceTime | Mapping[int, ServiceTime] | None = None,
        stack: bool = True,
        fair: bool | Mapping[Hashable, float] = False,
        device: Device | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._set(slo_s, max_batch_size, policy, max_queue_delay_s)
        if isinstance(slo_s, int) and slo_s >= _DOUBTFUL_SLO_S:
            message = (
                f"slo_s={slo_s} is {slo_s} seconds: write {slo_s / 1000} for milliseconds, or {slo_s}.0 to mean it"
            )
            warnings.warn(message, stacklevel=2)
        self.max_queue_size = check_count("max_queue_size", max_queue_size, at_most=_LARGEST)
        self._in_flight_given = max_in_flight is not None
        in_flight = 1 if max_in_flight is None else max_in_flight
        self.max_in_flight = check_count("max_in_flight", in_flight, at_most=_LARGEST)
        check_instance("stack", stack, bool, "True or False")
        self.stack = stack
        self.fair = fair
        self._weights = _as_weights(fair)
        self.buckets: Buckets | None = None
        if buckets is not None:
            from streaminfer.batching.assembly.buckets import as_buckets  # noqa: PLC0415 - only who pads loads it

            self.buckets = as_buckets(buckets)
        self.max_batch_bytes = max_batch_bytes
        self.row_cost, self.max_batch_cost = row_cost, max_batch_cost
        from streaminfer.batching.assembly.row_costs import make_cost_limit  # noqa: PLC0415 - not at the package's import

        self._cost_limit = make_cost_limit(row_cost, max_batch_cost)
        self.preferred_sizes = preferred_sizes
        self._make_assembler(None)  # raises if an argument is wrong
        self.preferred_sizes = None if preferred_sizes is None else tuple(preferred_sizes)
        if service_time is not None and self.policy != "lookahead":
            raise ValueError(
                expected("service_time", f"None with policy={policy!r}, which does not plan", service_time)
            )
        self.service_time: Any = None
        if self.policy == "lookahead":
            self.service_time = self._start_learning(service_time)
        if device is not None:
            from streaminfer.batching.device.device import Device  # noqa: PLC0415 - only who shares one loads it

            check_instance("device", device, Device, "a Device or None")
        self.device = device
        self._clock = check_clock("clock", clock)
        self._overhead: PipelineOverhead | None = None
        self._service: BatchedService | None = None

    def _set(self, slo_s: Any, max_batch_size: Any, policy: Any, max_queue_delay_s: Any) -> None:
        """Set what :meth:`reconfigure` may change."""
        from streaminfer.batching.policy import POLICY_NAMES  # noqa: PLC0415 - not at the package's import

        self.max_batch_size: int = check_count("max_batch_size", max_batch_size, at_most=_LARGEST)
        self.slo_s: float | None = None if slo_s is None else check_duration("slo_s", slo_s, positive=True)
        self.max_queue_delay_s: float = check_duration("max_queue_delay_s", max_queue_delay_s)
        self.policy: PolicyName = check_choice("policy", policy, POLICY_NAMES)
        if self.max_queue_delay_s and self.policy != "greedy":
            expectation = f"0 with policy={self.policy!r}, which never waits"
            raise ValueError(expected("max_queue_delay_s", expectation, self.max_queue_delay_s))

    @overload
    def wrap(self, inner: Backend) -> BatchedService: ...
    @overload
    def wrap(self, inner: Callable[[Any], Any]) -> BatchedFunction: ...
    def wrap(self, inner: Any) -> Any:
        """Wrap a backend or a batch function; only once.

        Args:
            inner: a backend (an object with ``infer``), or a sync or async function that takes a batch. The function
                returns an array with the batch axis; a mapping or tuple of such arrays, which is cut into rows; or a
                list with one result per row, in which an exception fails only that row's caller. A sync function runs
                on the event loop; use `CpuBackend` to run it elsewhere.

        Returns:
            A service for a backend; for a function an async callable
            ``(x, *, timeout_s=None, priority=0, stream_id=None, tenant=None, key=None)``.

        Raises:
            RuntimeError: the batcher has already wrapped something.
            TypeError: ``inner`` is neither a backend nor a function, or is a service.
            ValueError: ``preferred_sizes`` with a model that has outputs of the whole batch.
        """
        if self._service is not None:
            raise RuntimeError("an AdaptiveBatcher wraps once, and this one has: make another for another model")
        if is_backend(inner):
            check_infer("inner", inner)
        elif is_service(inner) or not callable(inner):
            expectation = "a backend (an object with infer) or a batch function, which take batches"
            raise TypeError(expected("inner", expectation, inner))
        else:
            check_no_generator("inner", inner)
        offered = adapt(inner).capabilities()
        if self.preferred_sizes is not None and offered.shared_outputs:
            expectation = "None for a model with outputs of the whole batch, since copies of a row fill up a batch"
            raise ValueError(expected("preferred_sizes", expectation, self.preferred_sizes))
        if not self._in_flight_given:
            self.max_in_flight = offered.queued_workers or 1
        from streaminfer.batching.batched_function import as_function  # noqa: PLC0415 - not at the package's import
        from streaminfer.batching.batched_service import BatchedService  # noqa: PLC0415

        service = self._service = BatchedService(
            inner,
            policy=self._make_policy(),
            max_batch_size=self.max_batch_size,
            max_queue_size=self.max_queue_size,
            max_in_flight=self.max_in_flight,
            slo_s=self.slo_s,
            stack=self.stack,
            clock=self._clock or time.monotonic_ns,
            assembler=self._make_assembler(inner),
            policy_for=None if self._in_flight_given else self._policy_for,
            weights=self._weights,
            device=self.device,
        )
        return service if is_backend(inner) else as_function(service, inner)

    def capabilities(self) -> Capabilities:
        """Return a capability to observe batches, once the batcher has wrapped something."""
        return Capabilities(observe_batches=None if self._service is None else self._service.observe_batches)

    async def load_kernels(self) -> None:
        """Load the kernels of the policy."""
        if self._service is not None:
            await self._service.load_kernels()

    def bind_clock(self, clock: Clock) -> None:
        """Use the clock of a `Stack`, unless the batcher was created with a clock."""
        if self._clock is None:
            self._clock = clock
            if self._service is not None:
                self._service.bind_clock(clock)

    async def stop(self, *, drain: bool = True) -> None:
        """Stop the service that :meth:`wrap` returned, if no `Stack` does it.

        Args:
            drain: complete the requests in flight first; otherwise they end with ``Closed``.
        """
        if self._service is not None:
            await self._service.stop(drain=drain)

    async def start(self) -> None:
        """Measure the wrapped backend with its example inputs, and accept requests; a `Stack` does this at its start.

        Raises:
            BackendError: the backend failed on an example that the user gave.
            ValueError: the backend takes only smaller batches, or its example does not fit it.
        """
        if self._service is not None:
            await self._service.start()

    def reconfigure(
        self,
        *,
        slo_s: float | None = _AS_BEFORE,
        max_batch_size: int = _AS_BEFORE,
        policy: PolicyName = _AS_BEFORE,
        max_queue_delay_s: float = _AS_BEFORE,
    ) -> None:
        """Change settings before or during operation; omitted settings stay as they are.

        No request is lost: queued requests keep their place and their deadline, running batches continue, and all
        measurements of the model remain. Call it on the event loop of the batcher.

        Args:
            slo_s: the objective for requests that arrive from now on without a deadline.
            max_batch_size: the largest batch from the next one on.
            policy: the policy from the next decision on.
            max_queue_delay_s: with ``policy="greedy"``; a change to another policy sets it to 0.

        Raises:
            TypeError, ValueError: as the constructor, or ``max_batch_size`` is more than the model takes.
            MissingExtra: the planner has no compiled kernels, and Numba is not installed.
            RuntimeError: requests are being served, and Numba would have to compile the planner's kernels; call
                `warmup` first. After any error, no setting has changed.
        """
        before = self.slo_s, self.max_batch_size, self.policy, self.max_queue_delay_s
        if max_queue_delay_s is _AS_BEFORE and policy is not _AS_BEFORE and policy != "greedy":
            max_queue_delay_s = 0.0
        changes = (slo_s, max_batch_size, policy, max_queue_delay_s)
        try:
            self._set(*(old if new is _AS_BEFORE else new for old, new in zip(before, changes, strict=True)))
            if self._service is not None:
                self._service.check_max_batch_size(self.max_batch_size)
                self._check_kernels(self._service)
            assembler = self._make_assembler(None if self._service is None else self._service.inner)
        except BaseException:
            self.slo_s, self.max_batch_size, self.policy, self.max_queue_delay_s = before
            raise
        if self.policy == "lookahead" and self.service_time is None:
            self.service_time = self._start_learning(None)
        if self._service is not None:
            self._service.change(self.slo_s, self.max_batch_size, self._make_policy(), assembler)

    def decision_log(self) -> DecisionLog:
        """Return a frozen log of why the latest batches were released and requests rejected; it can be plotted.

        Raises:
            RuntimeError: the batcher has not wrapped anything yet.
        """
        from streaminfer.simulation.decision_log import DecisionLog  # noqa: PLC0415 - loaded at the first log

        if self._service is None:
            raise RuntimeError("this AdaptiveBatcher wraps nothing yet")
        return DecisionLog.of(self._service.events)

    def statistics(self) -> BatcherStatistics:
        """Return a frozen snapshot: requests queued and running, outcomes of requests, reasons of batches.

        Raises:
            RuntimeError: the batcher has not wrapped anything yet.
        """
        if self._service is None:
            raise RuntimeError("this AdaptiveBatcher wraps nothing yet")
        return self._service.statistics()

    def _check_kernels(self, service: BatchedService) -> None:
        if self.policy == "lookahead":
            from streaminfer.batching.planner import kernel_loader  # noqa: PLC0415 - only who plans loads it

            kernel_loader.check()
            if service.is_serving and not kernel_loader.is_ready():
                raise RuntimeError(
                    "the planner's kernels are not loaded, and Numba would compile them while requests are served; "
                    "await asyncio.to_thread(streaminfer.warmup) first"
                )

    def _make_assembler(self, inner: Any) -> Assembler:
        from streaminfer.batching.assembly.model_calls import make_assembler  # noqa: PLC0415 - not at the package's import

        return make_assembler(
            inner,
            stack=self.stack,
            max_batch_size=self.max_batch_size,
            buckets=self.buckets,
            max_batch_bytes=self.max_batch_bytes,
            cost_limit=self._cost_limit,
            preferred_sizes=self.preferred_sizes,
        )

    def _start_learning(self, priors: Any) -> LearnedServiceTime | dict[int, LearnedServiceTime]:
        from streaminfer.batching.service_time.learned_service_time import LearnedServiceTime  # noqa: PLC0415 - only who plans loads them
        from streaminfer.batching.service_time.service_time import ServiceTime  # noqa: PLC0415

        if self.buckets is None:
            check_instance("service_time", priors, ServiceTime | None, "a ServiceTime")
            return LearnedServiceTime(prior=priors)
        lengths = self.buckets.lengths
        expectation = f"a mapping of bucket lengths, of {lengths}, to ServiceTime"
        check_instance("service_time", priors, Mapping | None, expectation)
        priors = priors or {}
        if not set(priors) <= set(lengths):
            raise ValueError(expected("service_time", expectation, priors))
        for prior in priors.values():
            check_instance("service_time", prior, ServiceTime, expectation)
        return {length: LearnedServiceTime(prior=priors.get(length)) for length in lengths}

    def _policy_for(self, workers: int) -> Policy:
        self.max_in_flight = workers
        return self._make_policy()

    def _make_policy(self) -> Policy:
        if self.policy == "greedy":
            from streaminfer.batching.policy import Greedy  # noqa: PLC0415 - only who does not plan loads it

            return Greedy(self.max_batch_size, timeout_ns(self.max_queue_delay_s))
        from streaminfer.batching.planner.lookahead import Lookahead  # noqa: PLC0415
        from streaminfer.batching.planner.pipelining import PipelineOverhead  # noqa: PLC0415 - only who plans loads them

        if self._overhead is None:
            self._overhead = PipelineOverhead()
        assembler = self._make_assembler(None)
        padded = None if self.preferred_sizes is None else assembler.padded_size
        # a batch cannot have more rows than the queue holds, and a plan costs time and memory for each size
        caps = [min(cap, self.max_queue_size) for cap in assembler.caps]
        buckets = self.buckets
        return Lookahead(
            self.max_batch_size,
            self.service_time if buckets is None else list(self.service_time.values()),
            workers=self.max_in_flight,
            caps=caps,
            lengths=None if buckets is None else buckets.lengths,
            padded=padded,
            kind_of=assembler.kind_of if self.stack else None,
            masked=buckets is not None and buckets.mask is not None,
            overhead=self._overhead,
        )

    def __repr__(self) -> str:
        slo = "" if self.slo_s is None else f", slo_s={self.slo_s}"
        around = "" if self._service is None else f" around {self._service!r}"
        return f"<AdaptiveBatcher(max_batch_size={self.max_batch_size}{slo}, policy={self.policy!r}){around}>"

    def _repr_html_(self) -> str:
        if self._service is not None:
            return self.statistics()._repr_html_()
        from streaminfer._internal.display.html_table import html_table  # noqa: PLC0415 - serving does not need it

        return html_table(
            [("largest batch", self.max_batch_size), ("policy", self.policy)], caption="batcher, not used yet"
        )


def _as_weights(fair: Any) -> Mapping[Hashable, float] | None:
    """Return the weights of streams that take turns; ``None`` if they do not."""
    expectation = "True, False or a mapping of stream id to weight, from 0.001 to 1000"
    if isinstance(fair, bool):
        return {} if fair else None
    check_instance("fair", fair, Mapping, expectation)
    for weight in fair.values():
        check_number("fair", weight, expectation, lambda number: 0.001 <= number <= 1000)
    return dict(fair)
