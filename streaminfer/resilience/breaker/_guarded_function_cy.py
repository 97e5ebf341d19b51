# cython: infer_types=True, binding=True
"""A synchronous function under a circuit breaker.

One source, compiled with the C types of ``_guarded_function_cy.pxd`` or run uncompiled.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import update_wrapper
from types import MethodType
from typing import Any

from streaminfer.resilience._targets import PLAIN, reject_awaitable
from streaminfer.resilience.breaker._guard_cy import BreakerCore

__all__ = ["GuardedFunction"]


class GuardedFunction:
    """A function under a circuit breaker; it is called, bound and documented like the function itself.

    Args:
        core: the breaker.
        function: the function.
    """

    def __init__(self, core: BreakerCore, function: Callable[..., Any]) -> None:
        self._core = core
        self._function = function
        update_wrapper(self, function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        core = self._core
        started_ns = core._now()
        permit = core._begin(started_ns)
        try:
            result = self._function(*args, **kwargs) if kwargs else self._function(*args)
        except BaseException as error:
            core._raise(permit, started_ns, error, None)
            raise
        if type(result) not in PLAIN and hasattr(type(result), "__await__"):
            core._end(permit, started_ns, None)
            reject_awaitable(self._function, result)
        core._return(permit, started_ns, result)
        return result

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> str:
        return self.__qualname__  # type: ignore[no-any-return, attr-defined] # found by its name, as functions are

    def __repr__(self) -> str:
        return f"<guarded {self._function!r}>"
