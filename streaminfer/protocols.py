"""Protocols of services, backends and layers, and `adapt`, which finds the capabilities of any object.

A service completes one request, a backend runs a batch, a layer wraps either. Objects need not inherit from these
classes: having ``call``, ``infer`` or ``wrap`` is enough.

A feature that only some objects offer is a *capability*. The classes of this package are `Node` objects and return
theirs from :meth:`Node.capabilities`; a `Wrapper` adds those of ``inner``, the object that it wraps. :func:`adapt`
makes a node of any other object: it reads the attributes named like the fields of `Capabilities`. Where one is missing
or ``None``, the node uses that of ``inner``, so capabilities are found through wrappers that do not know them.
Two capabilities are not inherited like this. A service must declare ``enforces_deadline`` itself, because its ``call``
may await more than that of ``inner``; and :func:`join_fingerprints` joins the ``fingerprint`` of both. If neither
offers ``stream_states``, the node uses those of its ``children``, such as the stages of a pipeline. :func:`adapt` also
reads ``slo_ns`` or ``slo_s`` as the objective, and ``name``, ``children``, ``needs``, ``start()``,
``stop(*, drain)``, ``bind_clock(clock)`` and ``statistics()``, as `Node` describes them. No other place finds a
capability by name, except that a `Stack` checks these methods when it is created.
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
"""Returns monotonic nanoseconds; `time.monotonic_ns` unless a test or a simulation replaces it."""

P = ParamSpec("P")
R = TypeVar("R")


@runtime_checkable
class Service(Protocol):
    """Completes one request per call."""

    async def call(self, request: Request) -> Response:
        """Return the response to the request, or raise a :class:`~streaminfer.StreamInferError`."""


@runtime_checkable
class Backend(Protocol):
    """Runs one batch per call.

    A backend may have ``batch_axes``, a mapping of input name to the axis on which the batcher stacks that input.
    The axis is 0 for inputs that the mapping does not name.
    """

    async def infer(self, batch: Batch) -> Sequence[Any]:
        """Return the outputs of the batch.

        Returns:
            An array with a leading batch axis, a mapping or tuple of such arrays, or a list with one result, or one
            exception, per row, in order.
        """


@runtime_checkable
class Layer(Protocol):
    """A primitive that can wrap a service, a backend or a plain function."""

    def wrap(self, inner: Any) -> Any:
        """Return the object that callers use instead of ``inner``; all wrapped objects share the layer's state."""


class _FixedObjective(NamedTuple):
    slo_ns: int


_NONE = Capabilities()
_NAMES = tuple(name for name in Capabilities._fields if name != "slo")


class Node:
    """Part of a stack; a service, backend or layer that inherits from it declares its capabilities.

    Each method has a default body.

    Attributes:
        name: for responses, errors and reports; if empty, the name of the class is used.
        needs: ``"backend"`` for a layer that a `Stack` must put around a backend, else empty.
        infer_now: runs a batch as ``infer`` does, but without awaiting, so a batcher needs no task; ``None``: the
            batcher awaits ``infer``. A wrapper does not inherit it from ``inner``.
        calibration: measurements of the latest start, for the report of the start.
    """

    __slots__ = ()

    name: str = ""
    needs: str = ""
    infer_now: Callable[[Batch], Any] | None = None
    calibration: Any = None

    @property
    def begin_infer(self) -> Callable[[Batch, Callable[[Any, BaseException | None], None]], Any] | None:
        """Function that starts the work of ``infer`` without a task of the batcher; ``None``: there is none.

        Takes ``(batch, done)``, returns an object with ``cancel``, and calls ``done(results, error)`` once, in a
        later iteration of the event loop.
        """
        return None

    @property
    def begin_call(self) -> Callable[[Request, Callable[[Response | None, BaseException | None], None]], Any] | None:
        """Function that starts the work of ``call`` without a task of the caller; ``None``: there is none.

        Takes ``(request, receive)``, returns an object with ``cancel``, and calls ``receive(response, error)`` once,
        on the event loop: with the response, or with ``None`` and the error. If it raises, it does not call
        ``receive``. A wrapper does not inherit it from ``inner``.
        """
        return None

    @property
    def start_progress(self) -> str:
        """Step of :meth:`start` in progress, for the log; empty if there is nothing to report."""
        return ""

    @property
    def stack_state(self) -> str:
        """State of a composed service, whose statistics are those of its children; empty for all other nodes."""
        return ""

    @property
    def children(self) -> Mapping[str, Any]:
        """The objects that this node sends requests to, by label: a router's routes, a wrapper's inner object."""
        return {}

    @property
    def left_to_owner(self) -> Sequence[Any]:
        """Children that this node neither starts nor stops: the owner starts them before it and stops them after."""
        return ()

    @property
    def starts(self) -> bool:
        """Whether the class overrides :meth:`start`."""
        return type(self).start is not Node.start

    @property
    def stops(self) -> bool:
        """Whether the class overrides :meth:`stop`."""
        return type(self).stop is not Node.stop

    def capabilities(self) -> Capabilities:
        """Return what the node offers at this moment."""
        return _NONE

    async def start(self) -> None:
        """Return when the node is ready for requests; a `Stack` starts its nodes from the innermost outward."""

    async def stop(self, *, drain: bool = True) -> None:
        """Accept no more requests; a `Stack` stops its nodes from the outermost inward.

        Args:
            drain: complete the accepted requests first.
        """

    async def load_kernels(self) -> None:
        """Load the kernels that plan and pad batches, before the garbage collector's heap is frozen."""
        for child in self.children.values():
            await adapt(child).load_kernels()

    def bind_clock(self, clock: Clock) -> None:
        """Use the clock of a `Stack`, unless this node was created with a clock."""
        for child in self.children.values():
            adapt(child).bind_clock(clock)

    def statistics(self) -> Any:
        """Return a frozen snapshot, or ``None`` if the node keeps no statistics."""
        return None


class Wrapper(Node):
    """A node around another object; it offers the capabilities of that object and may add to them.

    Args:
        inner: the wrapped object.
        layer: the primitive that made the wrapper; the wrapper uses its clock and statistics.
    """

    def __init__(self, inner: Any, layer: Any = None) -> None:
        self.inner = inner
        self.layer = layer
        self.name = name_of(inner)

    @property
    def children(self) -> Mapping[str, Any]:
        """The layer, if any, and the inner object."""
        return {"inner": self.inner} if self.layer is None else {"layer": self.layer, "inner": self.inner}

    @property
    def left_to_owner(self) -> Sequence[Any]:
        """The inner object, unless the wrapper overrides ``start`` or ``stop``: it then starts and stops that too."""
        return () if self.starts or self.stops else (self.inner,)

    def capabilities(self) -> Capabilities:
        """Return what the inner object offers; a wrapper that adds to it overrides this with ``_replace``.

        If its ``call`` awaits more than that of the inner object, it sets ``enforces_deadline=False``. If it changes
        responses, it sets a ``fingerprint`` from :func:`join_fingerprints`.
        """
        return adapt(self.inner).capabilities()

    def __repr__(self) -> str:
        layer = type(self).__name__ if self.layer is None else repr(self.layer)
        return f"{layer} around {self.inner!r}"


def join_fingerprints(own: Any, inner: Any) -> Any:
    """Return the joint fingerprint of a wrapper and its inner object, because either may change responses.

    Args:
        own: that of the wrapper; empty if it changes no response; ``None``: unknown, and so is the joint one.
        inner: that of the inner object; ``None``: it has none, and the wrapper's is the joint one.
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


def adapt(obj: Any) -> Node:
    """Return ``obj`` if it is a `Node`, else a node that finds the capabilities of ``obj`` by name."""
    return obj if isinstance(obj, Node) else _Adapted(obj)


class _ChildStates:
    """Stream states of the children of a user's object, such as the stages of a pipeline.

    An exported state is a mapping from the label of a child to the state of that child.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

    def states_by_label(self) -> dict[str, StreamStates]:
        offered = {label: adapt(child).capabilities().stream_states for label, child in self._node.children.items()}
        return {label: stream_states for label, stream_states in offered.items() if stream_states is not None}

    def reset_stream(self, stream_id: Hashable) -> None:
        for states in self.states_by_label().values():
            states.reset_stream(stream_id)

    def end_stream(self, stream_id: Hashable) -> None:
        for states in self.states_by_label().values():
            states.end_stream(stream_id)

    def export_state(self, stream_id: Hashable) -> dict[str, Any]:
        exported = {}
        for label, states in self.states_by_label().items():
            with suppress(InvalidInput):  # this child has no state of the stream
                exported[label] = states.export_state(stream_id)
        if not exported:
            raise InvalidInput(expected("stream_id", "a stream that has state", stream_id))
        return exported

    def import_state(self, stream_id: Hashable, state: Any) -> None:
        by_label = self.states_by_label()
        if not isinstance(state, Mapping) or not state.keys() <= by_label.keys():
            raise InvalidInput(f"state: expected a mapping with some of {sorted(by_label)}, got {type(state).__name__}")
        try:
            for label, states in by_label.items():
                if label in state:
                    states.import_state(stream_id, state[label])
                else:
                    states.end_stream(stream_id)
        except BaseException:
            self.end_stream(stream_id)  # no state at all is better than a mix of states from two instants
            raise


class _Adapted(Node):
    """A user's object as a node; the node reads most attributes each time they are needed."""

    def __init__(self, obj: Any) -> None:
        self._object = obj
        self.name = str(getattr(obj, "name", None) or getattr(obj, "__name__", None) or "")
        self.needs = getattr(obj, "needs", None) or ""

    @property
    def start_progress(self) -> str:
        return getattr(self._object, "start_progress", None) or ""

    @property
    def children(self) -> Mapping[str, Any]:
        children = getattr(self._object, "children", None)
        if isinstance(children, Mapping):
            return children
        return {} if self._inner is None else {"inner": self._inner}

    @property
    def _inner(self) -> Any:
        if hasattr(self._object, "no object has this attribute"):
            return None  # a mock has every attribute, so `inner` would lead to an endless chain
        return getattr(self._object, "inner", None)

    @property
    def left_to_owner(self) -> Sequence[Any]:
        inner = self._inner
        sends_to_it = is_service(inner) or is_backend(inner)  # otherwise `start` may mean something else
        return (inner,) if sends_to_it and not (self.starts or self.stops) else ()

    @property
    def starts(self) -> bool:
        return callable(getattr(self._object, "start", None))

    @property
    def stops(self) -> bool:
        return callable(getattr(self._object, "stop", None))

    def capabilities(self) -> Capabilities:
        obj = self._object
        own = {name: value for name in _NAMES if (value := getattr(obj, name, None)) is not None}
        if hasattr(obj, "slo_ns"):
            own["slo"] = obj
        elif (slo_s := getattr(obj, "slo_s", None)) is not None:
            own["slo"] = _FixedObjective(timeout_ns(check_duration("slo_s", slo_s, positive=True)))
        inner = self._inner
        offered = _NONE if inner is None else adapt(inner).capabilities()
        if offered.stream_states is None and isinstance(getattr(obj, "children", None), Mapping):
            states = _ChildStates(self)
            offered = offered._replace(stream_states=states if states.states_by_label() else None)
        if is_service(obj):  # its call may also await work that `inner` does not end at the deadline
            offered = offered._replace(enforces_deadline=False)
        if inner is not None:
            own["fingerprint"] = join_fingerprints(own.get("fingerprint"), offered.fingerprint)
        return offered._replace(**own)

    async def start(self) -> None:
        if self.starts:
            await self._awaitable("start", self._object.start())

    async def stop(self, *, drain: bool = True) -> None:
        if self.stops:
            await self._awaitable("stop", self._object.stop(drain=drain))

    def _awaitable(self, method: str, returned: Any) -> Any:
        expectation = "an `async def`, whose call is awaited"
        check_instance(f"{type(self._object).__name__}.{method}", returned, inspect.isawaitable, expectation)
        return returned

    def bind_clock(self, clock: Clock) -> None:
        bind = getattr(self._object, "bind_clock", None)
        if bind is None:
            super().bind_clock(clock)
        else:
            bind(clock)

    def statistics(self) -> Any:
        return self._object.statistics() if has_statistics(self._object) else None


def name_of(obj: Any) -> str:
    """Return the name for responses, errors and reports: that of the object, or else of its class."""
    return adapt(obj).name or type(obj).__name__


def are_idempotent(offered: Iterable[Capabilities]) -> bool | None:
    """Return whether requests may be sent twice: ``False`` if any entry says so, ``None`` if any does not say."""
    values = {each.idempotent for each in offered}
    return False if False in values else None if None in values or not values else True


def is_service(obj: object) -> bool:
    """Return whether an object is a service: it has a ``call`` method."""
    return callable(getattr(obj, "call", None))


def is_layer(obj: object) -> bool:
    """Return whether an object is a layer: it has a ``wrap`` method."""
    return callable(getattr(obj, "wrap", None))


def is_backend(obj: object) -> bool:
    """Return whether an object is a backend: it has an ``infer`` method."""
    return callable(getattr(obj, "infer", None))


def has_statistics(obj: object) -> bool:
    """Return whether an object has a ``statistics`` method."""
    return callable(getattr(obj, "statistics", None))


def check_infer(argument: str, backend: Any) -> None:
    """Reject a backend whose ``infer`` is a plain function, unless its annotation says that it returns an awaitable.

    Raises:
        TypeError: ``infer`` is such a function.
    """
    infer = inspect.unwrap(getattr(backend.infer, "__func__", backend.infer))
    if not isinstance(infer, types.FunctionType) or inspect.iscoroutinefunction(infer):
        return
    returns = str(signature_of(infer).return_annotation)
    if not any(kind in returns for kind in ("Awaitable", "Coroutine", "Future", "Task")):
        expectation = (
            "a backend with an `async def infer` (CpuBackend runs a plain function in a thread; a plain infer that "
            "returns an awaitable is annotated so)"
        )
        raise TypeError(f"{expected(argument, expectation, backend)}, whose infer is not async")
