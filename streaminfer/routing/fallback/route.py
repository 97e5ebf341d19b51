"""`Route`: a service of a `FallbackRouter` with its quality and cost; and the default when no route responds."""

import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import attrs

from streaminfer._internal.validation import check_amount, check_instance, expected, field_check, is_name
from streaminfer.protocols import ModelTensors, adapt, is_backend, is_service
from streaminfer.request import Request
from streaminfer.resilience._targets import reject_awaitable
from streaminfer.stack import Stack

__all__ = ["Route", "announced_tensors", "as_service", "check_default", "check_routes", "default_outputs"]

_Adapt = Callable[[Any], Any]
_DEFAULT = "a value or a plain function of the request"
_check_name = field_check(check_instance, is_name, "a string, not empty")
_check_cost = field_check(check_amount, positive=True, optional=True)
_check_adapter = field_check(check_instance, lambda it: it is None or callable(it), "a function or None")
_check_device = field_check(check_instance, Hashable, "a hashable value")


def as_service(value: Any, argument: str = "service") -> Any:
    """Return a service unchanged; compose layers around one, or a backend alone, into a `Stack`.

    Raises:
        TypeError: ``value`` is none of these.
    """
    if is_service(value):
        return value
    if is_backend(value):
        return Stack(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return Stack(*value)
    raise TypeError(expected(argument, "a service, a backend, or a sequence of layers that ends with one", value))


@attrs.frozen
class Route:
    """A service with the quality and the cost of its responses.

    Args:
        name: name of the route, and the ``source`` of its responses.
        service: a `Stack`, any other service, a backend, or a sequence of layers, outermost first, that ends with one.
            The router starts and stops it.
        quality: quality of a response, ≥ 0, relative to the other routes: accuracy, or what users would pay. Responses
            of a route with less quality than the best route are marked as degraded.
        cost: cost of a response, > 0, relative to the other routes: device seconds, or money. A route that costs no
            more than later ones keeps its traffic when they are crowded. ``None``: more than any later route.
        prepare: converts a request's inputs to those of this route: an image of 192² pixels to one of 128². A plain
            function runs on the event loop, in the caller's task, only for an attempt at the route; an async function
            is awaited there, within the route's time.
        finish: converts this route's outputs to those that callers expect; runs like ``prepare``.
        device: name of the device of the route. Routes of one device take time from each other, and the best of them
            lose traffic when the cheaper ones are late. Give different devices different names.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.

    Thread-safety: immutable.
    """

    name: str = attrs.field(validator=_check_name)
    service: Any = attrs.field(converter=as_service)
    quality: float = attrs.field(default=1.0, kw_only=True, validator=field_check(check_amount))
    cost: float | None = attrs.field(default=None, kw_only=True, validator=_check_cost)
    prepare: _Adapt | None = attrs.field(default=None, kw_only=True, validator=_check_adapter)
    finish: _Adapt | None = attrs.field(default=None, kw_only=True, validator=_check_adapter)
    device: Hashable = attrs.field(default="", kw_only=True, validator=_check_device)

    def costs_more_than(self, other: "Route") -> bool:
        """Return whether the other route is cheaper."""
        return self.cost is None or other.cost is None or self.cost > other.cost


def check_routes(routes: Sequence[Route]) -> None:
    """Check the routes of one router.

    Raises:
        TypeError: there is no route, or an object is not a route.
        ValueError: two routes have the same name, or the best route is not the first.
    """
    if not routes:
        raise TypeError("routes: expected at least one Route, got none")
    for route in routes:
        check_instance("routes", route, Route, "Route objects")
    names = [route.name for route in routes]
    if len(set(names)) < len(names):
        raise ValueError(expected("routes", "different names", names))
    qualities = [route.quality for route in routes]
    if qualities != sorted(qualities, reverse=True):
        raise ValueError(expected("routes", "the best first, by quality", qualities))


def announced_tensors(route: Route) -> ModelTensors | None:
    """Return the inputs and outputs of a route's service, as far as the route does not convert them."""
    describe = None if route.prepare is not None else adapt(route.service).capabilities().model_tensors
    tensors = None if describe is None else describe()
    return tensors if tensors is None or route.finish is None else tensors._replace(outputs=())


def check_default(default: Any) -> None:
    """Check the default of a router.

    Raises:
        TypeError: the default is an async function, which could take too long.
    """
    check_instance("default", default, lambda it: not inspect.iscoroutinefunction(it), _DEFAULT)


def default_outputs(default: Any, request: Request) -> Any:
    """Return the outputs of the default response to a request.

    Raises:
        TypeError: the function returned an awaitable.
        BaseException: raised by the function.
    """
    if not callable(default):
        return default
    outputs = default(request)
    reject_awaitable(default, outputs, "default", _DEFAULT)
    return outputs
