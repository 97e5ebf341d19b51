"""Identity of what was wrapped, a part of every key: two services that may respond differently never share it."""

import contextlib
import secrets
import types
import weakref
from typing import Any

from streaminfer._internal.qualified_name import name_of_function
from streaminfer._internal.validation import check_instance
from streaminfer.protocols import adapt

__all__ = ["identity_of"]


def identity_of(inner: Any) -> tuple[str, bool]:
    """Return the part of the keys that says what was wrapped, and whether another process would find the same.

    It is the ``fingerprint`` that a service offers, else module, qualified name and a digest of the code. What can
    exist twice under one name and code (objects, closures, lambdas, code that was typed in) has a random number as
    well, in this process only. If its models may change (several routes, which have no common fingerprint), the number
    of changes is part of it. Two services that may respond differently never share one.
    """
    offered = adapt(inner).capabilities()
    mark = offered.fingerprint
    if callable(mark):
        mark = mark()
    if isinstance(mark, bytes):
        mark = mark.hex()
    if mark is not None:
        what = "str or bytes, or a function that returns these"
        check_instance("fingerprint", mark, lambda it: isinstance(it, str), what)
        return f"fingerprint {mark}", True
    name = name_of_function(inner)
    if name is not None:
        return name, True
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    version = "" if offered.fingerprint_changes is None else f" {offered.fingerprint_changes()}"
    return f"{named.__module__}:{named.__qualname__} {_token_of(inner)}{version}", False


_TOKENS: dict[int, tuple[weakref.ref[Any], str]] = {}


def _token_of(thing: Any) -> str:
    """Return a random number that stays with an object for its life, in this process.

    Each look-up of a method makes another object, so a method has the numbers of its object and its function.
    """
    if isinstance(thing, types.MethodType):
        return f"{_token_of(thing.__self__)} {_token_of(thing.__func__)}"
    number = id(thing)
    known = _TOKENS.get(number)
    if known is not None and known[0]() is thing:
        return known[1]
    token = secrets.token_hex(16)

    def forget(reference: weakref.ref[Any]) -> None:
        if _TOKENS.get(number, (None,))[0] is reference:
            del _TOKENS[number]

    with contextlib.suppress(TypeError):  # without weak references each wrap has an identity of its own
        _TOKENS[number] = weakref.ref(thing, forget), token
    return token
