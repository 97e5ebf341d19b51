"""Capabilities: what a service, backend or layer offers beyond answering, and the records that they speak of."""

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
    """Why a service rejects a request, in `Admission`, statistics and logs."""

    QUEUE_FULL = "queue_full"
    """The queue of the batcher, or of the model, has no place left."""
    LIMIT = "limit"
    """A concurrency limit has no permit left."""
    RATE_LIMIT = "rate_limit"
    """The tenant has used up its rate."""
    INFEASIBLE = "infeasible"
    """It would miss its deadline even if it ran now."""
    DEADLINE_EXCEEDED = "deadline_exceeded"
    """Its deadline has passed."""
    SHED = "shed"
    """It was queued, and made room for a more urgent request, or for a stream with a shorter backlog."""
    CIRCUIT_OPEN = "circuit_open"
    """A circuit breaker is open."""
    NO_REPLICA = "no_replica"
    """There is no replica that could take it."""
    CLOSED = "closed"
    """The service does not run."""


class Admission(NamedTuple):
    """Whether a service would take a request now.

    Attributes:
        ok: it would be accepted and, as far as is known, answered by its deadline.
        reason: why not: an `AdmissionReason`, or a word of the user's own service; empty where ``ok``.
        retry_after_s: seconds after which asking again makes sense; ``None``: unknown.
        predicted_finish_ns: instant at which the answer is expected; ``None``: unknown.
    """

    ok: bool
    reason: str = ""
    retry_after_s: float | None = None
    predicted_finish_ns: int | None = None


class NextBatch(NamedTuple):
    """When a batcher can begin another batch.

    Attributes:
        at_ns: when a worker is expected to be free; not after the present instant: one is, or it is not known.
        room: how many more requests would be in that batch, beside those queued; in those of all free workers.
        workers: how many are free at once.
    """

    at_ns: int
    room: int
    workers: int = 1


def sooner(one: float | None, other: float | None) -> float | None:
    """The lesser of two ``retry_after_s``; one that is unknown says nothing."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


class ExampleInputs(NamedTuple):
    """What one request brings, as a backend knows it.

    Attributes:
        inputs: one array, or a mapping of input name to array, without a batch axis.
        infer: runs a batch of them as the backend's own ``infer`` does, but counts it nowhere.
        is_given: the user gave them: a batch that fails is an error. Otherwise they are a guess, and one that fails
            leaves the batcher to learn from live batches.
        free_axes: for a guess, by input name the axes of ``inputs`` whose size the model leaves open.
        resize: for a guess, makes the inputs with another size on all these axes; ``None``: sizes are not to be tried.
        infer_on_each: runs a batch once on every worker, so that each has done it; counted nowhere. ``None``: there is
            one worker, or no telling which one takes a batch.
        exclusive: other models must not be measured at the same time, because they compute on the same machine.
        infer_now: does what ``infer`` does at once, if the backend answers live batches so.
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
    """Owner of a latency objective, which may change while requests are answered."""

    @property
    def slo_ns(self) -> int | None:
        """Nanoseconds from which a `Stack` stamps the deadline of requests that bring none; ``None``: no objective."""


class StreamStates(Protocol):
    """Keeper of what a recurrent model remembers of each stream."""

    def reset_stream(self, stream_id: Hashable) -> None:
        """The next request of the stream starts from the initial state; nothing happens where there is none."""

    def end_stream(self, stream_id: Hashable) -> None:
        """The stream is over: its place is free for another; nothing happens where there is none."""

    def export_state(self, stream_id: Hashable) -> Any:
        """Return a copy of its state, as `import_state` of another keeper of the same model takes it."""

    def import_state(self, stream_id: Hashable, state: Any) -> None:
        """The next request of the stream goes on from ``state``."""


class Residency(NamedTuple):
    """How a model comes into the memory of its device, and leaves it.

    A `Device` with ``memory_bytes`` calls ``load`` before a model's first batch, also where it is loaded already, and
    again after an ``unload``; never while a batch of it runs. Batchers that are offered one object, or methods of one
    object, share the model, at a time or one after the other.

    Attributes:
        memory_bytes: what it takes there, its largest batch included.
        load: returns when it can run; at once where it can.
        unload: returns when it has left; at once where it has.
        load_at_start: a batcher loads it when it starts, because the backend does not know the model before.
    """

    memory_bytes: int
    load: Callable[[], Awaitable[None]]
    unload: Callable[[], Awaitable[None]]
    load_at_start: bool = False


class BackgroundRuns(NamedTuple):
    """How the batches of a model give way to those of another one while they run.

    A `Device` with ``preemptive=True`` calls ``set_background`` when the model comes into the background or leaves it,
    and before each batch there; ``raise_running`` when one would miss its deadline otherwise; and ``yield_running`` as
    a batch of the foreground begins while one of the background runs.

    Attributes:
        set_background: with true, later batches run at the lowest priority of the operating system, so that what else
            wants the core has it at once; with false, at the usual one again.
        raise_running: lets batches that run, or are about to, go on at the usual priority.
        obstacle: returns why the batches cannot be lowered here; empty: they can.
        yield_running: lets batches that run at the lowest priority give up their core once.
        running_ns: returns the CPU time that the batch that runs at the lowest priority has used, in nanoseconds; of
            several, the least; ``None``: none runs, or it is not known.
        ended_ns: returns the CPU time of the batch that ended last, likewise.
    """

    set_background: Callable[[bool], None]
    raise_running: Callable[[], None]
    obstacle: Callable[[], str] = str
    yield_running: Callable[[], None] = lambda: None
    running_ns: Callable[[], int | None] = lambda: None
    ended_ns: Callable[[], int | None] = lambda: None


class ModelTensor(Protocol):
    """One input or output of a model, as servers announce it."""

    @property
    def name(self) -> str:
        """As the model says."""

    @property
    def dtype(self) -> Any:
        """NumPy's type of callers' arrays; object for text; ``None`` where it is no tensor."""

    @property
    def row_shape(self) -> tuple[int | str | None, ...]:
        """Shape in one request, without the batch axis; a size that is a name or ``None`` is free."""

    @property
    def is_optional(self) -> bool:
        """Whether a request may leave it out."""

    @property
    def is_bfloat16(self) -> bool:
        """Whether the model has bfloat16 where callers have float32."""


class ModelTensors(NamedTuple):
    """What a request of a model brings and gets.

    Attributes:
        inputs: those that a request brings; empty: not known.
        outputs: those that it gets; empty: not known.
        takes_one_array: a request with one input may bring the array without its name.
        reads_bytes: text is taken as ``bytes`` too, so that it need not be Unicode.
    """

    inputs: Sequence[ModelTensor]
    outputs: Sequence[ModelTensor] = ()
    takes_one_array: bool = True
    reads_bytes: bool = False


class Capabilities(NamedTuple):
    """What a node offers beyond answering, its own or that of what it wraps.

    Attributes:
        validate: raises :class:`~streaminfer.InvalidInput` when what a request brings does not fit the model. The
            `Stack` calls it once, before anything is queued, and so offers none itself.
        validates_kinds: ``validate`` looks at names, types and shapes alone: what fits once, fits always.
        admission: says without side effects whether a request would be accepted at an instant, and when it would be
            answered.
        slo: read at each request.
        fingerprint: text or bytes that name the model, the same in every process, or a function that returns them. It
            is part of a cache's keys.
        fingerprint_changes: how often the fingerprint has changed, if it can while requests are answered. A cache looks
            at it for each request, and does not store what was computed while it changed. It changes no later than the
            first response under the new fingerprint begins. What a batcher measured at an earlier start holds only as
            long as this number. ``None``: the fingerprint is read once, when the node is wrapped.
        max_batch_size: the most rows in a batch that the backend takes; ``None``: any number. Read at start.
        shared_outputs: an output belongs to the whole batch, so copies of a row that fill up a batch would change it.
            Read when the node is wrapped.
        returns_new_arrays: no later batch writes to the arrays of a response. Otherwise a batcher copies the outputs of
            each batch before it sends the next one.
        isolates_rows: the backend sends a failed batch again in parts, so that its error for a whole batch is that of
            no single row. Otherwise a batcher does that.
        queued_workers: how many batches the model runs at once, if further ones wait at the model for their turn. A
            batcher with as many in flight sends the next one a little early, if outputs are new arrays. Read at start.
        example_inputs: returns what one request brings, for the batches that a batcher measures at start; ``None``: not
            known. Layers in between are not asked: calibration is no outcome for a breaker.
        server_parts: mean seconds of the parts of a call, by a name that no other backend has; for `Telemetry`.
        enforces_deadline: each request ends at its deadline without help from the `Stack`.
        idempotent: whether a request may be sent more than once; ``None``: only those that belong to no stream.
        batch_axes: input name → axis on which a batcher stacks it; 0 for others. Read when the node is wrapped.
        max_in_flight: how many batches a batcher runs at once.
        full_load: how many requests keep every worker of a batcher busy with full batches.
        spare_load: returns the same of other routes, for what would be late at the best one; ``None``: there is none,
            and of the function: any number.
        spread_load: returns how many requests keep the workers of all services busy among which it spreads requests;
            those that do not tell count as none. ``None``: it does not spread them.
        next_batch: returns when the next batch can begin, from the present instant on, and of how many more requests.
        slow_batch_ns: returns the nanoseconds that a slow batch of so many requests takes, at most those of a full one,
            outliers left out; ``None``, also of the function: not known.
        expected_batch_ns: returns the nanoseconds that a batch of so many requests is expected to take; 0: not known.
        shares_device: its batches take turns with those of other models, which depend on what is queued.
        stream_states: the state of each stream, of a model that is recurrent; ``None``: requests do not depend on
            earlier ones.
        new_children: takes a function that is told the label and the object of each child that comes later.
        many_answers: the outputs of a response are an asynchronous iterator of answers; servers send each as it comes.
        model_tensors: returns the model's inputs and outputs, which servers announce; ``None``: not known.
        observe_batches: takes a function that makes a `BatchObserver` of the model's name, and tells it of each batch.
        residency: how the model leaves its device's memory and comes back; ``None``: it is always there. Read when the
            node is wrapped.
        background_runs: how batches give way to those of another model while they run; ``None``: they do not. Read when
            the node is wrapped.
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
        """Return what one request brings, if the backend knows it.

        Raises:
            TypeError: it says so in another form.
        """
        example = None if self.example_inputs is None else self.example_inputs()
        what = "None, or streaminfer.protocols.ExampleInputs(inputs, infer)"
        check_instance("example_inputs", example, lambda it: isinstance(it, ExampleInputs | None), what)
        return example
