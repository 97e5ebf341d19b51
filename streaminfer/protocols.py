"""Protocols of services, backends and layers; the record of what each offers beyond answering; and `adapt`.

A service answers one request, a backend a batch, a layer wraps either. An object need not inherit from anything here:
having ``call``, ``infer`` or ``wrap`` is enough.

What only some objects offer is a *capability*. The classes of this package are `Node` objects and say theirs in
:meth:`Node.capabilities`; a `Wrapper` adds what it wraps, kept in ``inner``, offers. :func:`adapt` makes a node of any
other object: it takes the attributes named like the fields of `Capabilities` and, where one is missing or ``None``,
what ``inner`` offers, so that capabilities are found through wrappers that do not know of them. It also takes
``slo_ns``, or ``slo_s``, as the objective, and ``name``, ``children``, ``needs``, ``start()``,
``stop(*, drain)``, ``bind_clock(clock)`` and ``statistics()``, as `Node` describes them. No other place looks for a
capability by name.
"""

import inspect
import types
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, runtime_checkable

from streaminfer._internal.validation import expected
from streaminfer.request import Batch, Request, Response, timeout_ns

__all__ = [
    "Admission",
    "AdmissionReason",
    "Backend",
    "Capabilities",
    "Clock",
    "ExampleInputs",
    "Layer",
    "ModelTensor",
    "ModelTensors",
    "Node",
    "Objective",
    "Service",
    "StreamStates",
    "Wrapper",
    "adapt",
    "are_idempotent",
    "check_infer",
    "is_backend",
    "is_layer",
    "is_service",
    "name_of",
    "sooner",
]

Clock = Callable[[], int]
"""Returns monotonic nanoseconds; `time.monotonic_ns` unless a test or a simulation says otherwise."""

P = ParamSpec("P")
R = TypeVar("R")


@runtime_checkable
class Service(Protocol):
    """Answers one request."""

    async def call(self, request: Request) -> Response:
        """Answers the request or raises a :class:`~streaminfer.StreamInferError`."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Answers a batch.

    A backend may name the axis of each input on which the batcher stacks, ``batch_axes``: a mapping of input name to
    axis, 0 for inputs it does not name.
    """

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Return the outputs of the batch.

        Returns:
            An array with a leading batch axis, a mapping or tuple of such arrays, or a list with one result, or one
            exception, per row, in order.
        """
        ...


@runtime_checkable
class Layer(Protocol):
    """A primitive that can stand in front of a service, a backend or a plain function."""

    def wrap(self, inner: Any) -> Any:
        """What callers use instead of ``inner``; its state is the layer's, shared by all that it wraps."""
        ...


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
    """It was queued, and made room for a more urgent request."""
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
        ...


class StreamStates(Protocol):
    """Keeper of what a recurrent model remembers of each stream."""

    def reset_stream(self, stream_id: Hashable) -> None:
        """The next request of the stream starts from the initial state; nothing happens where there is none."""
        ...

    def end_stream(self, stream_id: Hashable) -> None:
        """The stream is over: its place is free for another; nothing happens where there is none."""
        ...

    def export_state(self, stream_id: Hashable) -> Any:
        """Return a copy of its state, as `import_state` of another keeper of the same model takes it."""
        ...

    def import_state(self, stream_id: Hashable, state: Any) -> None:
        """The next request of the stream goes on from ``state``."""
        ...


class ModelTensor(Protocol):
    """One input or output of a model, as servers announce it."""

    @property
    def name(self) -> str:
        """As the model says."""
        ...

    @property
    def dtype(self) -> Any:
        """NumPy's type of callers' arrays; object for text; ``None`` where it is no tensor."""
        ...

    @property
    def row_shape(self) -> tuple[int | str | None, ...]:
        """Shape in one request, without the batch axis; a size that is a name or ``None`` is free."""
        ...

    @property
    def is_optional(self) -> bool:
        """Whether a request may leave it out."""
        ...

    @property
    def is_bfloat16(self) -> bool:
        """Whether the model has bfloat16 where callers have float32."""
        ...


class ModelTensors(NamedTuple):
    """What a request of a model brings and gets.

    Attributes:
        inputs: those that a request brings.
        outputs: those that it gets; empty: not known.
        takes_one_array: a request with one input may bring the array without its name.
        reads_bytes: text is taken as ``bytes`` too, so that it need not be Unicode.
    """

    inputs: Sequence[ModelTensor]
    outputs: Sequence[ModelTensor] = ()
    takes_one_array: bool = True
    reads_bytes: bool = False


class _FixedObjective(NamedTuple):
    slo_ns: int


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
        stream_states: the state of each stream, of a model that is recurrent; ``None``: requests do not depend on
            earlier ones.
        new_children: takes a function that is told the label and the object of each child that comes later.
        model_tensors: returns the model's inputs and outputs, which servers announce; ``None``: not known.
        observe_batches: takes a function that makes a `BatchObserver` of the model's name, and tells it of each batch.
    """

    validate: Callable[[Request], None] | None = None
    validates_kinds: bool = False
    admission: Callable[[Request, int], Admission] | None = None
    slo: Objective | None = None
    fingerprint: str | bytes | Callable[[], str | bytes | None] | None = None
    fingerprint_changes: Callable[[], int] | None = None
    max_batch_size: int | None = None
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
    stream_states: StreamStates | None = None
    new_children: Callable[[Callable[[str, Any], None]], None] | None = None
    model_tensors: Callable[[], ModelTensors | None] | None = None
    observe_batches: Callable[[Callable[[str], Any]], None] | None = None


_NONE = Capabilities()
_NAMES = tuple(name for name in Capabilities._fields if name != "slo")


class Node:
    """A part of a stack; a service, backend or layer that inherits it says what it offers without being probed.

    Each method has a default body.

    Attributes:
        name: for responses, errors and reports; empty: that of its class.
        needs: ``"backend"`` for a layer that a `Stack` must put around a backend, else empty.
        infer_now: answers a batch as ``infer`` does, but at once: a batcher then needs no task for it. ``None``: it is
            awaited. A wrapper does not offer that of what it wraps.
        calibration: what the latest start measured, for the report of the start.
    """

    __slots__ = ()

    name: str = ""
    needs: str = ""
    infer_now: Callable[[Batch], Any] | None = None
    calibration: Any = None

    @property
    def start_progress(self) -> str:
        """What :meth:`start` does at this moment, for the log; empty when there is nothing to say."""
        return ""

    @property
    def stack_state(self) -> str:
        """State of a composition, whose statistics are those of its children; empty for all others."""
        return ""

    @property
    def children(self) -> Mapping[str, Any]:
        """What it sends requests to, by a label: the routes of a router, what a wrapper wraps."""
        return {}

    @property
    def starts(self) -> bool:
        """Whether it has a start of its own."""
        return type(self).start is not Node.start

    @property
    def stops(self) -> bool:
        """Whether it has a stop of its own."""
        return type(self).stop is not Node.stop

    def capabilities(self) -> Capabilities:
        """What it offers at this moment."""
        return _NONE

    async def start(self) -> None:
        """Returns when it is ready to answer; a `Stack` starts from the innermost."""

    async def stop(self, *, drain: bool = True) -> None:
        """Accepts nothing more; a `Stack` stops from the outermost.

        Args:
            drain: answer first what was accepted.
        """

    async def load_kernels(self) -> None:
        """Loads what plans and pads, before the garbage collector's heap is frozen."""
        for child in self.children.values():
            await adapt(child).load_kernels()

    def bind_clock(self, clock: Clock) -> None:
        """Takes over the clock of a `Stack`, unless one was given."""
        for child in self.children.values():
            adapt(child).bind_clock(clock)

    def statistics(self) -> Any:
        """A frozen snapshot; ``None``: it keeps none."""
        return None


class Wrapper(Node):
    """A node around another object: it offers what that offers, and may add to it.

    Args:
        inner: what it wraps.
        layer: the primitive that it belongs to, whose clock and statistics are those of the wrapper.
    """

    def __init__(self, inner: Any, layer: Any = None) -> None:
        self.inner = inner
        self.layer = layer
        self.name = name_of(inner)

    @property
    def children(self) -> Mapping[str, Any]:
        """Its layer and what it wraps."""
        return {"inner": self.inner} if self.layer is None else {"layer": self.layer, "inner": self.inner}

    def capabilities(self) -> Capabilities:
        """What the inner object offers; a wrapper that adds to it overrides this with ``_replace``."""
        return adapt(self.inner).capabilities()


def adapt(thing: Any) -> Node:
    """Return ``thing`` if it is a `Node`, else a node that finds by name what it offers."""
    return thing if isinstance(thing, Node) else _Adapted(thing)


class _Adapted(Node):
    """A user's object as a node; each attribute is read when it is needed."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing
        self.name = str(getattr(thing, "name", None) or getattr(thing, "__name__", None) or "")
        self.needs = getattr(thing, "needs", None) or ""

    @property
    def start_progress(self) -> str:
        return getattr(self._thing, "start_progress", None) or ""

    @property
    def children(self) -> Mapping[str, Any]:
        given = getattr(self._thing, "children", None)
        if isinstance(given, Mapping):
            return given
        return {} if self._inner is None else {"inner": self._inner}

    @property
    def _inner(self) -> Any:
        if hasattr(self._thing, "no object has this attribute"):
            return None  # but a mock has any, and so any number of inner objects
        return getattr(self._thing, "inner", None)

    @property
    def starts(self) -> bool:
        return callable(getattr(self._thing, "start", None))

    @property
    def stops(self) -> bool:
        return callable(getattr(self._thing, "stop", None))

    def capabilities(self) -> Capabilities:
        thing = self._thing
        own = {name: value for name in _NAMES if (value := getattr(thing, name, None)) is not None}
        if hasattr(thing, "slo_ns"):
            own["slo"] = thing
        elif (slo_s := getattr(thing, "slo_s", None)) is not None:
            own["slo"] = _FixedObjective(timeout_ns(slo_s))
        inner = self._inner
        return (_NONE if inner is None else adapt(inner).capabilities())._replace(**own)

    async def start(self) -> None:
        if self.starts:
            await self._thing.start()

    async def stop(self, *, drain: bool = True) -> None:
        if self.stops:
            await self._thing.stop(drain=drain)

    def bind_clock(self, clock: Clock) -> None:
        bind = getattr(self._thing, "bind_clock", None)
        if bind is None:
            super().bind_clock(clock)
        else:
            bind(clock)

    def statistics(self) -> Any:
        take = getattr(self._thing, "statistics", None)
        return take() if callable(take) else None


def name_of(thing: Any) -> str:
    """Return what responses, errors and reports call it: its name, or that of its class."""
    return adapt(thing).name or type(thing).__name__


def are_idempotent(services: Iterable[object]) -> bool | None:
    """Return whether a request may be sent twice to any of them: no if one says no, ``None`` if one is silent."""
    said = {adapt(service).capabilities().idempotent for service in services}
    return False if False in said else None if None in said or not said else True


def is_service(thing: object) -> bool:
    """An object with ``call`` answers one request."""
    return callable(getattr(thing, "call", None))


def is_layer(thing: object) -> bool:
    """An object with ``wrap`` is put around a service, a backend or a function."""
    return callable(getattr(thing, "wrap", None))


def is_backend(thing: object) -> bool:
    """An object with ``infer`` answers a batch."""
    return callable(getattr(thing, "infer", None))


def check_infer(argument: str, backend: Any) -> None:
    """Refuse a backend whose ``infer`` is a plain function, unless it is annotated to return an awaitable.

    Raises:
        TypeError: it is.
    """
    infer = inspect.unwrap(getattr(backend.infer, "__func__", backend.infer))
    if not isinstance(infer, types.FunctionType) or inspect.iscoroutinefunction(infer):
        return
    returns = str(infer.__annotations__.get("return", ""))
    if not any(kind in returns for kind in ("Awaitable", "Coroutine", "Future", "Task")):
        what = (
            "a backend with an `async def infer` (CpuBackend runs a plain function in a thread; a plain infer that "
            "returns an awaitable is annotated so)"
        )
        raise TypeError(f"{expected(argument, what, backend)}, whose infer is not async")
