"""Functions with the parameters of another function, compiled from text, as attrs and dataclasses do.

Collecting any arguments in a tuple and a mapping, and passing them on, costs more than the rest of a thin wrapper.
"""

import inspect
import types
from collections.abc import Mapping
from typing import Any

__all__ = ["define_with_parameters"]

_STARRED = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


def define_with_parameters(function: Any, source: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """Define functions that have the same parameters as a function; ``(*args, **kwargs)`` if that collects arguments.

    Args:
        function: the function, which is ``__function`` in the source.
        source: the definitions, with ``{parameters}``; ``{arguments}``, which passes them on; and ``{values}``, a tuple
            of their values.
        names: other objects in the source, by their names, which begin with two underscores.

    Returns:
        The defined functions by name.
    """
    parameters, arguments, values = "*args, **kwargs", "*args, **kwargs", "(args, kwargs)"
    plain = isinstance(function, types.FunctionType) and not function.__code__.co_flags & _STARRED
    if plain:
        code = function.__code__
        positional = list(code.co_varnames[: code.co_argcount])
        by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        values = "(" + "".join(f"{name}, " for name in (*positional, *by_name)) + ")"
        arguments = ", ".join([*positional, *(f"{name}={name}" for name in by_name)])
        if code.co_posonlyargcount:
            positional.insert(code.co_posonlyargcount, "/")
        parameters = ", ".join([*positional, "*", *by_name] if by_name else positional)
    text = source.format(parameters=parameters, arguments=arguments, values=values)
    defined: dict[str, Any] = {}
    exec(text, {"__function": function, **names}, defined)  # noqa: S102 - made of names of parameters, all identifiers
    if plain:
        for each in defined.values():
            each.__defaults__ = function.__defaults__
            each.__kwdefaults__ = function.__kwdefaults__ and dict(function.__kwdefaults__)
    return defined
