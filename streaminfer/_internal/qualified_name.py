"""Names of functions that are the same in every process."""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Callable
from typing import Any

__all__ = ["name_of_function"]

_DIGEST_BYTES = 16
_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), type(...))


def name_of_function(function: Any) -> str | None:
    """Return module, qualified name and a digest of the code, if these identify the function.

    They do for a function that is defined in a module or a class and has no closure, also if Numba compiled it. The
    module of every script is called ``__main__``, so the name includes the script's file. The digest covers the
    bytecode, its names and constants, and the defaults: it changes with the code, and differs for another function of
    the same name. It does not cover the functions that this one calls.

    Returns:
        ``None`` for anything else: a lambda, a method of an object, a function that was made by another one or renamed,
        a function whose globals belong to no module, or one typed at a prompt, where a later function of the same name
        may do something else.
    """
    plain: Callable[..., Any] = getattr(function, "py_func", function)
    if not isinstance(plain, types.FunctionType):
        return None
    name = plain.__qualname__
    if "<" in name or plain.__code__.co_qualname != name or not set(plain.__code__.co_freevars) <= {"__class__"}:
        return None
    module = plain.__module__
    home = sys.modules.get(module)
    if home is None or plain.__globals__ is not vars(home):
        return None
    if module == "__main__":
        file = getattr(home, "__file__", None)
        if file is None:
            return None
        module = f"{module} {file}"
    try:
        described = (_code(plain.__code__), _constant(plain.__defaults__), _constant(plain.__kwdefaults__))
    except TypeError:  # a default is not a constant
        return None
    digest = hashlib.blake2b(repr(described).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES)
    return f"{module}:{name} {digest.hexdigest()}"


def _code(code: types.CodeType) -> tuple[Any, ...]:
    """Return all parts of a code object that affect what it does, without file and line numbers."""
    return (
        code.co_code,
        code.co_exceptiontable,
        code.co_flags,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        (code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars),
        tuple(_constant(each) for each in code.co_consts),
    )


def _constant(value: Any) -> Any:
    """Return a constant in a form whose ``repr`` is the same in every process."""
    kind = type(value)
    if kind is types.CodeType:
        return "code", _code(value)
    if kind is tuple or kind is list:
        return kind.__name__, [_constant(each) for each in value]
    if kind is frozenset or kind is set:
        return kind.__name__, sorted(repr(_constant(each)) for each in value)
    if kind is dict:
        return "dict", sorted((repr(_constant(name)), _constant(each)) for name, each in value.items())
    if isinstance(value, type):
        return "class", value.__module__, value.__qualname__
    if kind not in _CONSTANTS:
        raise TypeError(f"{kind.__name__} is no constant")
    return value
