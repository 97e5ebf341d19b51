"""Signatures of users' functions, and functions with the same parameters."""

import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["define_with_parameters", "signature_of"]

_STARRED = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return a function's signature without evaluating annotations, which may name type-checking imports only.

    Raises:
        TypeError: it is not callable.
        ValueError: it has no signature, like some compiled functions.
    """
    if sys.version_info >= (3, 14):
        import annotationlib  # noqa: PLC0415 - not there before

        return inspect.signature(function, annotation_format=annotationlib.Format.STRING)
    return inspect.signature(function)


def define_with_parameters(function: Any, source: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """Define functions that have the same parameters as a function, or ``(*args, **kwargs)``, which take the same.

    They are compiled from text, as attrs and dataclasses do: collecting any arguments in a tuple and a mapping, and
    passing them on, costs more than the rest of a thin wrapper.

    Args:
        function: the function, which is ``__function`` in the source.
        source: the definitions, with ``{parameters}``; ``{arguments}``, which passes them on; and ``{values}``, a tuple
            of their values.
        names: other objects in the source, by their names, which begin with two underscores.

    Returns:
        The defined functions by name.
    """
    parameters, arguments, values = "*args, **kwargs", "*args, **kwargs", "(args, kwargs)"
    code = function.__code__ if isinstance(function, types.FunctionType) else None
    # a parameter with two underscores could have the name of an object in the source
    if code and (code.co_flags & _STARRED or any(name.startswith("__") for name in code.co_varnames)):
        code = None
    if code:
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
    if code:
        for each in defined.values():
            each.__defaults__ = function.__defaults__
            each.__kwdefaults__ = function.__kwdefaults__ and dict(function.__kwdefaults__)
    return defined
