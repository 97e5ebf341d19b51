"""The response of a `FallbackRouter` when no route responds in time."""

import inspect
from typing import Any

from streaminfer._internal.validation import check_instance, expected
from streaminfer.request import Request

__all__ = ["check_default", "default_outputs"]

_EXPECTED = "a value or a plain function of the request"


def check_default(default: Any) -> None:
    """Check the default of a router.

    Raises:
        TypeError: an async function, which could take longer than there is time.
    """
    check_instance("default", default, lambda it: not inspect.iscoroutinefunction(it), _EXPECTED)


def default_outputs(default: Any, request: Request) -> Any:
    """Return the outputs of the default response to a request.

    Raises:
        TypeError: the function returned an awaitable.
        BaseException: raised by the function.
    """
    if not callable(default):
        return default
    outputs = default(request)
    if hasattr(type(outputs), "__await__"):
        if inspect.iscoroutine(outputs):
            outputs.close()
        raise TypeError(expected("default", _EXPECTED, default))
    return outputs
