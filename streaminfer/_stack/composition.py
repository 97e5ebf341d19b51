"""Composition of layers into one service, and the errors for layers that do not fit together."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from streaminfer._internal.validation import expected
from streaminfer._runtime.owners import parts_of
from streaminfer._stack._chain_cy import Chain
from streaminfer._stack.optional_methods import LAYER_METHODS, check_methods
from streaminfer.batching.batched_service import BatchedService
from streaminfer.batching.policy import Greedy
from streaminfer.protocols import Capabilities, Clock, adapt, check_infer, is_backend, is_layer, is_service
from streaminfer.sync_layer import SyncService

if TYPE_CHECKING:
    from streaminfer._stack.run import StackRun

__all__ = ["check_layers", "compose", "join"]

_UNBOUNDED = 2**31 - 1


def compose(layers: tuple[Any, ...], clock: Clock) -> tuple[list[Any], BatchedService | None]:
    """Wrap layers that were checked.

    Returns:
        The parts, innermost first: those that the last layer leaves to its owner, then the wrapped objects, the last
        of which is the service; and the batcher that makes batches of one, or ``None``.
    """
    single = None
    current = layers[-1]
    parts = parts_of(current)
    if not is_service(current) and not any(adapt(layer).needs == "backend" for layer in layers[:-1]):
        current = single = BatchedService(
            current,
            policy=Greedy(1),
            max_batch_size=1,
            max_queue_size=_UNBOUNDED,
            max_in_flight=_UNBOUNDED,
            slo_s=None,
            stack=True,
            clock=clock,
        )
        parts.append(current)
    for layer in reversed(layers[:-1]):
        try:
            current = layer.wrap(current)
        except TypeError as error:
            name = type(layer).__name__
            raise TypeError(f"layers: {name} cannot wrap what follows it: {error}{_order(layers, layer)}") from error
        check_methods(current)
        parts.append(current)
    if not is_service(current):
        raise TypeError(f"layers: {type(layers[0]).__name__} made no service: {current!r}")
    return parts, single


def join(service: Any, offered: Capabilities, clock: Clock, reject: Callable[[], None], run: StackRun | None) -> Chain:
    """Join the synchronous layers around the first service that must be awaited.

    Args:
        service: the outermost layer, wrapped.
        offered: its capabilities.
        clock: of the stack.
        reject: raises the error for a call from another event loop.
        run: ends calls at their deadline, and lets them wait; ``None``: every call is rejected.
    """
    services: list[SyncService] = []
    is_enforced = offered.enforces_deadline
    # a call that the stack ends at its deadline may still run: layers that count it must see its real end
    while isinstance(service, SyncService) and service.clock is clock and (is_enforced or service.sees_invalid):
        services.append(service)
        service = service.inner
    return Chain(
        [service.enter for service in services],
        [service.exit for service in services],
        offered.validate,
        len(list(itertools.takewhile(lambda service: service.sees_invalid, services))),
        offered.slo,
        service if type(service) is BatchedService else None,
        service.call if is_enforced or run is None else run.enforcing(service.call),
        reject,
        clock,
        service.call if run is None else run.places.call,
    )


def check_layers(layers: tuple[Any, ...]) -> None:
    """Raise for an object that is no layer, and for a last one that is neither a backend nor a service."""
    if len(layers) == 1 and isinstance(layers[0], (list, tuple)):
        kind = type(layers[0]).__name__
        raise TypeError(f"layers: expected the layers one by one, got a {kind} of {len(layers[0])}: Stack(*layers)")
    for layer in layers:
        # a class with a static wrap, call or infer can be a layer without an instance
        if isinstance(layer, type) and not any(_needs_no_instance(layer, name) for name in ("wrap", "call", "infer")):
            name = layer.__name__
            raise TypeError(f"layers: expected instances, got the class {name}: {name}(...) makes an instance")
    if not is_service(layers[-1]) and not is_backend(layers[-1]):
        expectation = "a backend or a service as the last one (CpuBackend makes a function one)"
        raise TypeError(expected("layers", expectation, layers[-1]) + _order(layers))
    if not is_service(layers[-1]):
        check_infer("layers", layers[-1])
    for part in parts_of(layers[-1]):
        check_methods(part)
    for layer in layers[:-1]:
        if not is_layer(layer):
            reason = expected("layers", "layers (objects with wrap) before the last one", layer)
            if is_service(layer):
                reason += "; a service comes last: layers after it go into what it calls, as the routes of a router"
            raise TypeError(reason)
        check_methods(layer, LAYER_METHODS)


def _needs_no_instance(layer: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(layer, name, None), (classmethod, staticmethod))


def _order(layers: tuple[Any, ...], rejected: Any = None) -> str:
    """Return a hint with an order of the layers that works; empty if none is known.

    Args:
        layers: outermost first.
        rejected: the layer that could not wrap the next one; ``None``: the last one is neither backend nor service.
    """
    ends = [layer for layer in layers if not is_layer(layer)]
    batchers = [layer for layer in layers if adapt(layer).needs == "backend"]
    if rejected in batchers and not is_backend(layers[-1]):
        return f"; {type(rejected).__name__} goes into what the service calls, such as each route of a router"
    if rejected is not None and batchers and layers.index(rejected) < layers.index(batchers[0]):
        return ""  # it is already outside the batcher: another problem
    others = [layer for layer in layers if layer not in ends and layer not in batchers]
    ordered = [*others, *batchers, *ends]
    if len(ends) != 1 or len(batchers) > 1 or ordered == list(layers):
        return ""
    if not is_backend(ends[0]) and (batchers or not is_service(ends[0])):
        return ""
    return f"; the order that works: Stack({', '.join(type(layer).__name__ for layer in ordered)})"
