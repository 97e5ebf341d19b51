"""Capabilities: optional features of services, backends and layers, and the records that they use."""

from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from streaminfer._internal.validation import check_instance
from streaminfer.request import Batch, Request

__all__ = [
    "Admission",
    "AdmissionReason",
    "BackgroundRuns",
    "Capabilities",
    "ExampleInputs",
    "ModelTensor",
    "ModelTensors",
    "NextBatch",
    "Objective",
    "Residency",
    "StreamStates",
    "sooner",
]


class AdmissionReason(StrEnum):
    """Reasons for which a service rejects a request, in `Admission`, statistics and logs."""

    QUEUE_FULL = "queue_full"
    """The queue of the batcher or of the model is full."""
    LIMIT = "limit"
    """The concurrency limit has no permit left."""
    RATE_LIMIT = "rate_limit"
    """The tenant has used up its rate limit."""
    INFEASIBLE = "infeasible"
    """The request would miss its deadline even if it ran now."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """The deadline of the request has passed."""
    SHED = "shed"
    """The queued request made room for a more urgent one, or for a stream with a shorter backlog."""
    CIRCUIT_OPEN = "circuit_open"
    """The circuit breaker is open."""
    NO_REPLICA = "no_replica"
    """No replica can take the request."""
    CLOSED = "closed"
    """The service is not running."""


class Admission(NamedTuple):
    """Prediction of whether a service would accept a request now.

    Attributes:
        ok: the service would accept the request and is expected to complete it by its deadline.
        reason: an `AdmissionReason`, or a word of the user's own service; empty if ``ok``.
        retry_after_s: seconds after which a retry makes sense; ``None``: unknown.
        predicted_finish_ns: instant at which the response is expected; ``None``: unknown.
    """

    ok: bool
    reason: str = ""
    retry_after_s: float | None = None
    predicted_finish_ns: int | None = None


class NextBatch(NamedTuple):
    """Prediction of a batcher's next batch.

    Attributes:
        at_ns: when a worker is expected to be free; at or before the present: a worker is free, or this is unknown.
        room: how many more requests would be in that batch, besides those queued; in those of all free workers.
        workers: how many workers are free then.
        full_load: how many requests keep every worker busy with such batches; 0: unknown.
    """

    at_ns: int
    room: int
    workers: int = 1
    full_load: int = 0


def sooner(one: float | None, other: float | None) -> float | None:
    """Return the smaller of two ``retry_after_s``; if one is ``None``, the other."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


class ExampleInputs(NamedTuple):
    """Inputs of one request, as the backend knows them.

    Attributes:
        inputs: one array, or a mapping of input name to array, without a batch axis.
        infer: runs a batch of these inputs like the backend's ``infer``, but counts it in no statistics.
        is_given: the user gave the inputs, so a batch that fails is an error. Otherwise the backend guessed them, and
            after a failure the batcher learns from live batches instead.
        free_axes: for guessed inputs, by input name, the axes of ``inputs`` whose size the model leaves open.
        resize: for guessed inputs, makes them with another size on all these axes; ``None``: do not try other sizes.
        infer_on_each: runs a batch once on every worker, counted in no statistics. ``None``: there is one worker, or
            the backend cannot choose the worker of a batch.
        exclusive: other models must not be measured at the same time, because they compute on the same machine.
        infer_now: like ``infer``, without awaiting, if the backend runs live batches like that.
    """

    inputs: Any
    infer: Callable[[Batch], Awaitable[Any]]
    is_given: bool = True
    free_axes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    resize: Callable[[int], Any] | None = None
    infer_on_each: Callable[[Batch], Awaitable[None]] | None = None
    exclusive: bool = True
    infer_now: Callable[[Batch], Any] | None = None


class Objective(Protocol):
    """Owner of a latency objective, which may change while the service runs."""

    @property
    def slo_ns(self) -> int | None:
        """Nanoseconds that a `Stack` allows a request without a deadline; ``None``: no objective."""


class StreamStates(Protocol):
    """Owner of the state that a recurrent model has for each stream."""

    def reset_stream(self, stream_id: Hashable) -> None:
        """Start the next request of the stream from the initial state; a stream without state is ignored."""

    def end_stream(self, stream_id: Hashable) -> None:
        """Free the state of a stream that has ended; a stream without state is ignored."""

    def export_state(self, stream_id: Hashable) -> Any:
        """Return a copy of the stream's state, for `import_state` of another owner for the same model."""

    def import_state(self, stream_id: Hashable, state: Any) -> None:
        """Start the next request of the stream from ``state``."""


class Residency(NamedTuple):
    """Loading and unloading of a model in the memory of its device.

    A `Device` with ``memory_bytes`` calls ``load`` before a model's first batch, even if the model is loaded already,
    and again after an ``unload``; never while a batch of the model runs. Batchers share the model if they get the same
    object, or methods of the same object, at the same time or one after the other.

    Attributes:
        memory_bytes: memory of the model on the device, including its largest batch.
        load: returns when the model can run; at once if it is loaded.
        unload: returns when the model has left the memory; at once if it is not loaded.
        load_at_start: a batcher loads the model when it starts, because the backend does not know the model earlier.
    """

    memory_bytes: int
    load: Callable[[], Awaitable[None]]
    unload: Callable[[], Awaitable[None]]
    load_at_start: bool = False


class BackgroundRuns(NamedTuple):
    """Controls with which the running batches of a model yield to those of another model.

    A `Device` with ``preemptive=True`` calls ``set_background`` when the model enters or leaves the background, and
    before each of its batches there. It calls ``raise_running`` if a running batch would otherwise miss its deadline,
    and ``yield_running`` when a foreground batch begins while a background batch runs.

    Attributes:
        set_background: with true, later batches run at the lowest priority of the operating system, so that other
            threads get the core at once; with false, they run at the usual priority again.
        raise_running: returns the running batches, and those about to run, to the usual priority.
        obstacle: returns the reason why batches cannot run at a lower priority here; empty: they can.
        yield_running: makes the batches that run at the lowest priority yield their core once.
        running_ns: returns the CPU time, in nanoseconds, of the batch that runs at the lowest priority; of several,
            the smallest; ``None``: no such batch runs, or the time is unknown.
        ended_ns: returns the CPU time, in nanoseconds, of the last lowest-priority batch that ended; ``None``: unknown.
    """

    set_background: Callable[[bool], None]
    raise_running: Callable[[], None]
    obstacle: Callable[[], str] = str
    yield_running: Callable[[], None] = lambda: None
    running_ns: Callable[[], int | None] = lambda: None
    ended_ns: Callable[[], int | None] = lambda: None


class ModelTensor(Protocol):
    """One input or output of a model, as servers announce it to clients."""

    @property
    def name(self) -> str:
        """Name in the model."""

    @property
    def dtype(self) -> Any:
        """NumPy type of the callers' arrays; object for text; ``None`` if it is not a tensor."""

    @property
    def row_shape(self) -> tuple[int | str | None, ...]:
        """Shape in one request, without the batch axis; a size is free if it is a name or ``None``."""

    @property
    def is_optional(self) -> bool:
        """Whether a request may omit it."""

    @property
    def is_bfloat16(self) -> bool:
        """Whether the model uses bfloat16 where callers use float32."""


class ModelTensors(NamedTuple):
    """Inputs and outputs of a model, per request.

    Attributes:
        inputs: the inputs of a request; empty: unknown.
        outputs: the outputs of a response; empty: unknown.
        takes_one_array: a request with one input may pass the array without its name.
        reads_bytes: text may also be ``bytes``, which need not be valid Unicode.
    """

    inputs: Sequence[ModelTensor]
    outputs: Sequence[ModelTensor] = ()
    takes_one_array: bool = True
    reads_bytes: bool = False


class Capabilities(NamedTuple):
    """Optional features of a node: its own and those of the objects that it wraps.

    Attributes:
        validate: raises :class:`~streaminfer.InvalidInput` if the inputs of a request do not fit the model. The `Stack`
            calls it once, before anything is queued, and so does not offer it itself.
        validates_kinds: ``validate`` checks only names, types and shapes, so inputs that fit once always fit.
        admission: predicts without side effects whether the node would accept a request at an instant, and when the
            request would complete.
        slo: the objective, read for each request.
        fingerprint: text or bytes that name the model, the same in every process, or a function that returns them. It
            is part of a cache's keys.
        fingerprint_changes: how often the fingerprint has changed, if it can change while the node serves requests. A
            cache reads the number for each request and does not store a response if the number changed meanwhile. It
            changes no later than the first response under the new fingerprint begins. A batcher discards measurements
            of an earlier start if the number differs. ``None``: the fingerprint is read once, when the node is wrapped.
        max_batch_size: the most rows in a batch that the backend takes; ``None``: any number. Read at start.
        shared_outputs: an output belongs to the whole batch, so rows added as padding would change it. Read when the
            node is wrapped.
        returns_new_arrays: no later batch writes to the arrays of a response. Otherwise a batcher copies the outputs of
            each batch before it sends the next one.
        isolates_rows: the backend splits a failed batch and sends the parts again, so an error for the whole batch is
            not caused by a single row. Otherwise the batcher does that.
        queued_workers: how many batches the model runs at once, if it queues further ones. A batcher with that many in
            flight sends the next one a little early, if outputs are new arrays. Read at start.
        example_inputs: returns the inputs of one request, for the batches that a batcher measures at start; ``None``:
            unknown. Calibration bypasses the layers in between: its outcomes must not count for a breaker.
        server_parts: mean seconds of the parts of a call, under a name that no other backend uses; for `Telemetry`.
        enforces_deadline: each request ends at its deadline without help from the `Stack`.
        idempotent: whether a request may be sent more than once; ``None``: only those that belong to no stream.
        batch_axes: input name → axis on which a batcher stacks it; 0 for others. Read when the node is wrapped.
        max_in_flight: how many batches a batcher runs at once.
        full_load: how many requests keep every worker of a batcher busy with full batches.
        spare_load: returns the same figure for the other routes, which can take the requests that would be late at the
            best one; ``None``: there are no other routes. If the function returns ``None``: any number.
        spread_load: returns how many requests keep busy the workers of all services among which the node spreads
            requests; services that do not report a figure count as zero. ``None``: it does not spread requests.
        next_batch: returns when the next batch can begin, at the present or later, and its room for more requests.
        slow_batch_ns: returns the nanoseconds that a slow batch of so many requests takes, outliers excluded, and at
            most those of a full batch; ``None``, also as the function's result: unknown.
        expected_batch_ns: returns the nanoseconds that a batch of so many requests is expected to take; 0: unknown.
        shares_device: its batches take turns with those of other models, depending on their queues.
        stream_states: the state of each stream of a recurrent model; ``None``: requests do not depend on
            earlier ones.
        new_children: takes a function and calls it with the label and the object of each child that is added later.
        many_answers: the outputs of a response are an asynchronous iterator; servers send each item as it comes.
        model_tensors: returns the model's inputs and outputs, which servers announce; ``None``: unknown.
        observe_batches: takes a function that makes a `BatchObserver` from the model's name; the observer gets each
            batch.
        residency: how the model leaves and enters its device's memory; ``None``: it always stays there. Read when the
            node is wrapped.
        background_runs: how running batches yield to those of another model; ``None``: they do not. Read when the node
            is wrapped.
    """

    validate: Callable[[Request], None] | None = None
    validates_kinds: bool = False
    admission: Callable[[Request, int], Admission] | None = None
    slo: Objective | None = None
    fingerprint: str | bytes | Callable[[], str | bytes | None] | None = None
    fingerprint_changes: Callable[[], int] | None = None
    max_batch_size: int | None = None
    shared_outputs: bool = False
    returns_new_arrays: bool = False
    isolates_rows: bool = False
    queued_workers: int | None = None
    example_inputs: Callable[[], ExampleInputs | None] | None = None
    server_parts: Callable[[], Mapping[str, float]] | None = None
    enforces_deadline: bool = False
    idempotent: bool | None = None
    batch_axes: Mapping[str, int] = MappingProxyType({})
    max_in_flight: int | None = None
    full_load: Callable[[], int] | None = None
    spare_load: Callable[[], int | None] | None = None
    spread_load: Callable[[], int] | None = None
    next_batch: Callable[[int], NextBatch] | None = None
    slow_batch_ns: Callable[[int], int | None] | None = None
    expected_batch_ns: Callable[[int], int] | None = None
    shares_device: bool = False
    stream_states: StreamStates | None = None
    new_children: Callable[[Callable[[str, Any], None]], None] | None = None
    many_answers: bool = False
    model_tensors: Callable[[], ModelTensors | None] | None = None
    observe_batches: Callable[[Callable[[str], Any]], None] | None = None
    residency: Residency | None = None
    background_runs: BackgroundRuns | None = None

    def example(self) -> ExampleInputs | None:
        """Return the inputs of one request, if the backend knows them.

        Raises:
            TypeError: ``example_inputs`` returned something else.
        """
        example = None if self.example_inputs is None else self.example_inputs()
        expectation = "None, or streaminfer.protocols.ExampleInputs(inputs, infer)"
        check_instance("example_inputs", example, ExampleInputs | None, expectation)
        return example
