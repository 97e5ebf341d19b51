"""Cached functions: the parameters of the wrapped one written out, so that f(1) and f(x=1) have one key."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from functools import partial, wraps
from typing import Any, ParamSpec, Protocol, TypeVar

from streaminfer.caching.wrapping._hit_path_cy import HitPath, Miss

__all__ = ["CachedFunction", "cached_function"]

_STARRED = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS

_SHELL = """
{define} cached({parameters}):
    __found = __look({values})
    if __found.__class__ is not __Missed:
        return __found
    return {awaited}__on_miss(__found, __partial({call}))
def key_of({parameters}):
    return __key({values})
"""


P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)


class CachedFunction(Protocol[P, R_co]):
    """Function with a cache in front of it, as type checkers see it."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return what the function returns, from the cache if it is there."""

    def key_of(self, *args: P.args, **kwargs: P.kwargs) -> bytes:
        """Return the key of a call with these arguments."""


def cached_function(function: Any, hit_path: HitPath, on_miss: Callable[..., Any], *, is_async: bool) -> Any:
    """Return a function of the same kind and parameters, which looks into the cache first.

    Arguments that are collected, ``*args`` and ``**kwargs``, are keyed as they come.

    Args:
        function: what is wrapped.
        hit_path: looks into the cache.
        on_miss: takes a `Miss`, and a call of the function with all arguments.
        is_async: whether ``on_miss`` is to be awaited.
    """
    parameters, values, call = "*args, **kwargs", "(args, kwargs)", "__function, *args, **kwargs"
    plain = isinstance(function, types.FunctionType) and not function.__code__.co_flags & _STARRED
    if plain:
        code = function.__code__
        positional = list(code.co_varnames[: code.co_argcount])
        by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        values = "(" + "".join(f"{name}, " for name in (*positional, *by_name)) + ")"
        call = ", ".join(["__function", *positional, *(f"{name}={name}" for name in by_name)])
        if code.co_posonlyargcount:
            positional.insert(code.co_posonlyargcount, "/")
        parameters = ", ".join([*positional, "*", *by_name] if by_name else positional)
    define, awaited = ("async def", "await ") if is_async else ("def", "")
    source = _SHELL.format(define=define, awaited=awaited, parameters=parameters, values=values, call=call)
    namespace: dict[str, Any] = {
        "__look": hit_path.look,
        "__key": hit_path.key,
        "__Missed": Miss,
        "__on_miss": on_miss,
        "__partial": partial,
        "__function": function,
    }
    exec(source, namespace)  # noqa: S102 - made of the names of parameters alone, which are identifiers
    cached, key_of = namespace["cached"], namespace["key_of"]
    if plain:
        for made in (cached, key_of):
            made.__defaults__ = function.__defaults__
            made.__kwdefaults__ = function.__kwdefaults__ and dict(function.__kwdefaults__)
    wraps(function)(cached)
    cached.key_of = key_of
    return cached
