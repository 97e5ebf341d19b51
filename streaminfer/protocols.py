"""Protocols of services, backends and layers; and `adapt`, which finds what each offers beyond answering.

A service answers one request, a backend a batch, a layer wraps either. An object need not inherit from anything here:
having ``call``, ``infer`` or ``wrap`` is enough.

What only some objects offer is a *capability*. The classes of this package are `Node` objects and say theirs in
:meth:`Node.capabilities`; a `Wrapper` adds what it wraps, kept in ``inner``, offers. :func:`adapt` makes a node of any
other object: it takes the attributes named like the fields of `Capabilities` and, where one is missing or ``None``,
what ``inner`` offers, so that capabilities are found through wrappers that do not know of them. Only that a service
``enforces_deadline`` is its own to say, because its ``call`` may await more than that of ``inner``, and a
``fingerprint`` is that of both (:func:`join_fingerprints`). Where neither
offers ``stream_states``, those of its ``children`` are taken, as of the stages of a pipeline. It also takes
``slo_ns``, or ``slo_s``, as the objective, and ``name``, ``children``, ``needs``, ``start()``,
``stop(*, drain)``, ``bind_clock(clock)`` and ``statistics()``, as `Node` describes them. No other place looks for a
capability by name, except that a `Stack` checks such methods when it is made.
"""

import inspect
import types
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, runtime_checkable

from streaminfer._internal.signatures import signature_of
from streaminfer._internal.validation import check_duration, check_instance, expected
from streaminfer.capabilities import (
    Admission,
    AdmissionReason,
    BackgroundRuns,
    Capabilities,
    ExampleInputs,
    ModelTensor,
    ModelTensors,
    NextBatch,
    Objective,
    Residency,
    StreamStates,
    sooner,
)
from streaminfer.errors import InvalidInput
from streaminfer.request import Batch, Request, Response, timeout_ns

__all__ = [
    "Admission",
    "AdmissionReason",
    "Backend",
    "BackgroundRuns",
    "Capabilities",
    "Clock",
    "ExampleInputs",
    "Layer",
    "ModelTensor",
    "ModelTensors",
    "NextBatch",
    "Node",
    "Objective",
    "Residency",
    "Service",
    "StreamStates",
    "Wrapper",
    "adapt",
    "are_idempotent",
    "check_infer",
    "has_statistics",
    "is_backend",
    "is_layer",
    "is_service",
    "join_fingerprints",
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


@runtime_checkable
class Layer(Protocol):
    """A primitive that can stand in front of a service, a backend or a plain function."""

    def wrap(self, inner: Any) -> Any:
        """What callers use instead of ``inner``; its state is the layer's, shared by all that it wraps."""


class _FixedObjective(NamedTuple):
    slo_ns: int


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
    def begin_infer(self) -> Callable[[Batch, Callable[[Any, BaseException | None], None]], Any] | None:
        """What begins that which ``infer`` awaits: a batcher then needs no task for it; ``None``: nothing does.

        Called with ``(batch, done)``; returns an object with ``cancel``, and calls ``done(results, error)`` once, in a
        later turn of the loop.
        """
        return None

    @property
    def begin_call(self) -> Callable[[Request, Callable[[Response | None, BaseException | None], None]], Any] | None:
        """What begins that which ``call`` awaits: its caller then needs no task for it; ``None``: nothing does.

        Called with ``(request, receive)``; returns an object with ``cancel``, and calls ``receive(response, error)``
        once, on the loop: with the response, or with ``None`` and the error. Where it raises, ``receive`` is not
        called. A wrapper does not offer that of what it wraps.
        """
        return None

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
    def left_to_owner(self) -> Sequence[Any]:
        """Children that it neither starts nor stops: who starts it starts them before, and stops them after it."""
        return ()

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

    @property
    def left_to_owner(self) -> Sequence[Any]:
        """What it wraps; one with a start or a stop of its own is taken to start and stop that, unless it says so."""
        return () if self.starts or self.stops else (self.inner,)

    def capabilities(self) -> Capabilities:
        """What the inner object offers; a wrapper that adds to it overrides this with ``_replace``.

        One whose ``call`` awaits more than that of the inner object says ``enforces_deadline=False``, and one that
        changes responses a ``fingerprint`` of :func:`join_fingerprints`.
        """
        return adapt(self.inner).capabilities()

    def __repr__(self) -> str:
        layer = type(self).__name__ if self.layer is None else repr(self.layer)
        return f"{layer} around {self.inner!r}"


def join_fingerprints(own: Any, inner: Any) -> Any:
    """Return the fingerprint of what is around something else: of both, since either may change responses.

    Args:
        own: its own; an empty one says that it changes no response. ``None``: not known, and so for both.
        inner: that of what it is around; ``None``: there is none, and its own is for both.
    """
    own = own() if callable(own) else own
    inner = inner() if callable(inner) else inner
    if not isinstance(own, (str, bytes)):
        return own
    if not own:
        return inner
    if inner is None:
        return own
    return f"{own!r} around {inner!r}"


def adapt(thing: Any) -> Node:
    """Return ``thing`` if it is a `Node`, else a node that finds by name what it offers."""
    return thing if isinstance(thing, Node) else _Adapted(thing)


class _ChildStates:
    """State of streams at the children of a user's object, such as the stages of a pipeline: a stream has some at each.

    A state of all is a mapping by the labels of the children.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    def keepers(self) -> dict[str, StreamStates]:
        offered = {label: adapt(child).capabilities().stream_states for label, child in self._node.children.items()}
        return {label: states for label, states in offered.items() if states is not None}

    def reset_stream(self, stream_id: Hashable) -> None:
        for keeper in self.keepers().values():
            keeper.reset_stream(stream_id)

    def end_stream(self, stream_id: Hashable) -> None:
        for keeper in self.keepers().values():
            keeper.end_stream(stream_id)

    def export_state(self, stream_id: Hashable) -> dict[str, Any]:
        exported = {}
        for label, keeper in self.keepers().items():
            with suppress(InvalidInput):  # it has none of this stream
                exported[label] = keeper.export_state(stream_id)
        if not exported:
            raise InvalidInput(expected("stream_id", "a stream that has state", stream_id))
        return exported

    def import_state(self, stream_id: Hashable, state: Any) -> None:
        keepers = self.keepers()
        if not isinstance(state, Mapping) or not state.keys() <= keepers.keys():
            raise InvalidInput(f"state: expected a mapping with some of {sorted(keepers)}, got {type(state).__name__}")
        try:
            for label, keeper in keepers.items():
                if label in state:
                    keeper.import_state(stream_id, state[label])
                else:
                    keeper.end_stream(stream_id)
        except BaseException:
            self.end_stream(stream_id)  # rather from the start everywhere than from states of two instants
            raise


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
    def left_to_owner(self) -> Sequence[Any]:
        inner = self._inner
        sends_to_it = is_service(inner) or is_backend(inner)  # else it may be any object that has a `start`
        return (inner,) if sends_to_it and not (self.starts or self.stops) else ()

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
            own["slo"] = _FixedObjective(timeout_ns(check_duration("slo_s", slo_s, positive=True)))
        inner = self._inner
        offered = _NONE if inner is None else adapt(inner).capabilities()
        if offered.stream_states is None and isinstance(getattr(thing, "children", None), Mapping):
            states = _ChildStates(self)
            offered = offered._replace(stream_states=states if states.keepers() else None)
        if is_service(thing):  # its call may await more than what it wraps ends in time
            offered = offered._replace(enforces_deadline=False)
        if inner is not None:
            own["fingerprint"] = join_fingerprints(own.get("fingerprint"), offered.fingerprint)
        return offered._replace(**own)

    async def start(self) -> None:
        if self.starts:
            await self._awaitable("start", self._thing.start())

    async def stop(self, *, drain: bool = True) -> None:
        if self.stops:
            await self._awaitable("stop", self._thing.stop(drain=drain))

    def _awaitable(self, method: str, returned: Any) -> Any:
        what = "an `async def`, whose call is awaited"
        check_instance(f"{type(self._thing).__name__}.{method}", returned, inspect.isawaitable, what)
        return returned

    def bind_clock(self, clock: Clock) -> None:
        bind = getattr(self._thing, "bind_clock", None)
        if bind is None:
            super().bind_clock(clock)
        else:
            bind(clock)

    def statistics(self) -> Any:
        return self._thing.statistics() if has_statistics(self._thing) else None


def name_of(thing: Any) -> str:
    """Return what responses, errors and reports call it: its name, or that of its class."""
    return adapt(thing).name or type(thing).__name__


def are_idempotent(offered: Iterable[Capabilities]) -> bool | None:
    """Return whether a request may be sent twice to any of them: no if one says no, ``None`` if one is silent."""
    said = {each.idempotent for each in offered}
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


def has_statistics(thing: object) -> bool:
    """An object with ``statistics`` tells what it has counted."""
    return callable(getattr(thing, "statistics", None))


def check_infer(argument: str, backend: Any) -> None:
    """Refuse a backend whose ``infer`` is a plain function, unless it is annotated to return an awaitable.

    Raises:
        TypeError: it is.
    """
    infer = inspect.unwrap(getattr(backend.infer, "__func__", backend.infer))
    if not isinstance(infer, types.FunctionType) or inspect.iscoroutinefunction(infer):
        return
    returns = str(signature_of(infer).return_annotation)
    if not any(kind in returns for kind in ("Awaitable", "Coroutine", "Future", "Task")):
        what = (
            "a backend with an `async def infer` (CpuBackend runs a plain function in a thread; a plain infer that "
            "returns an awaitable is annotated so)"
        )
        raise TypeError(f"{expected(argument, what, backend)}, whose infer is not async")
