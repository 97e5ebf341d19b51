"""What everything depends on: a service answers one request, a backend a batch, a layer wraps either.

The protocols are tiny and near frozen. An object need not inherit from them; having the methods is enough.

A wrapper keeps what it wraps in ``inner``, so that a capability that only some objects offer can be *found
inward* (:func:`find_inward`) through wrappers that know nothing of it:

``validate(request) -> None``
    raises :class:`~streaminfer.InvalidInput` when what the request brings does not fit the model; called once, by
    the `Stack`, before anything is queued.
``admission(request, now_ns) -> Admission``
    says without side effects whether the request would be accepted now, and when it would be answered.
``slo_s``, ``slo_ns``
    the latency objective from which the `Stack` stamps a deadline on requests that bring none; one that may change
    while it runs is offered as ``slo_ns``, whole nanoseconds or ``None``, and read at each request.
``fingerprint``
    text or bytes, or a function that returns them: what answers, the same in every process. It is part of a cache's
    keys.
``fingerprint_changes() -> int``
    how often the fingerprint has changed, where it may while requests are answered. A cache looks at it for each
    request, and does not store what was computed while it changed. It changes no later than the first answer under the
    new fingerprint begins, and whatever begins later is answered under that. Also what the batcher has measured at an
    earlier start holds only as long as this number. Not offered: the fingerprint is read once, when something is
    wrapped.
``max_batch_size``
    the most rows of a batch that the backend takes, ``None`` for any number; read when what it stands behind starts.
``returns_new_arrays``
    true where no later batch writes to the arrays that a batch was answered with, so that callers may keep them.
    Otherwise a batcher copies the outputs of each batch before it sends the next one, because a model may reuse its
    output memory.
``isolates_rows``
    true where the backend itself sends a failed batch again in parts, so that its error for a whole batch is none of a
    single row. Otherwise a batcher does that.
``queued_workers``
    how many batches the model works on at once, where further ones that are sent wait at the model for their turn: a
    batcher with as many in flight sends the next one a little early, provided that the backend also declares
    ``returns_new_arrays``. Read when what it stands behind starts.
``example_inputs() -> ExampleInputs | None``
    what one request brings, for the batches that a batcher measures before it accepts requests, and the way on which
    these batches reach the backend; ``None``: not known. Called at start. Wrappers that do not offer it are passed by:
    calibration is no outcome for a breaker, and no attempt for a retry.
``server_parts() -> Mapping[str, float]``
    mean seconds of the parts of a call, as a server behind the backend says, by a name that no other backend has;
    `TelemetryStatistics` shows them.
``enforces_deadline``
    true where a request ends at its deadline without help from the `Stack`.
``start()`` and ``stop(*, drain)``
    coroutines; the `Stack` starts from the innermost and stops from the outermost.
"""

import inspect
import types
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, runtime_checkable

from streaminfer._internal.validation import expected
from streaminfer.request import Batch, Request, Response

__all__ = [
    "Admission",
    "Backend",
    "Clock",
    "ExampleInputs",
    "Layer",
    "Observer",
    "Service",
    "check_infer",
    "find_inward",
    "is_backend",
    "is_service",
    "sooner",
]

Clock = Callable[[], int]
"""Returns monotonic nanoseconds; `time.monotonic_ns` unless a test or a simulation says otherwise."""

T = TypeVar("T")
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


class Observer(Protocol):
    """Sees each request begin and end and changes nothing.

    A wrapper that only observes offers itself as ``observer``, so that the `Stack`, where that wrapper is its outermost
    one, calls it in its own frame instead of awaiting one more coroutine for each request.

    Attributes:
        clock: whose instants it is given.
    """

    clock: Clock

    def begin(self) -> None:
        """A request came."""
        ...

    def fail(self, error: BaseException) -> None:
        """It ended without an answer."""
        ...

    def answer(self, response: Response, started_ns: int, now_ns: int) -> None:
        """It was answered."""
        ...


class Admission(NamedTuple):
    """Whether a service would take a request now.

    Attributes:
        ok: it would be accepted and, as far as is known, answered by its deadline.
        reason: why not: ``"queue_full"``, ``"limit"``, ``"rate_limit"``, ``"infeasible"`` (it would miss its
            deadline), ``"deadline_exceeded"``, ``"circuit_open"``, ``"no_replica"``, ``"closed"``; empty where ``ok``.
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
    """

    inputs: Any
    infer: Callable[[Batch], Awaitable[Any]]
    is_given: bool = True
    free_axes: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    resize: Callable[[int], Any] | None = None
    infer_on_each: Callable[[Batch], Awaitable[None]] | None = None
    exclusive: bool = True


def is_service(thing: object) -> bool:
    """An object with ``call`` answers one request."""
    return callable(getattr(thing, "call", None))


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


def find_inward(outermost: object, name: str, default: T) -> Any | T:
    """The nearest capability called ``name``: of ``outermost``, else of what it wraps, and so on inward."""
    current: object | None = outermost
    while current is not None:
        value = getattr(current, name, None)
        if value is not None:
            return value
        current = getattr(current, "inner", None)
    return default
