"""Identity of a wrapped object, a part of every key: services that may respond differently never share a key."""

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
    """Return the part of a key that identifies a wrapped object, and whether another process would derive the same.

    The identity is the ``fingerprint`` that a service offers, else module, qualified name and a digest of the code.
    Objects, closures, lambdas and code that was typed in can exist twice with the same name and code. Their identity
    therefore includes a random number and is valid only in this process. If the models of a service may change (several
    routes without a common fingerprint), it also includes the number of changes.
    """
    offered = adapt(inner).capabilities()
    mark = offered.fingerprint
    if callable(mark):
        mark = mark()
    if isinstance(mark, bytes):
        mark = mark.hex()
    if mark is not None:
        expectation = "str or bytes, or a function that returns these"
        check_instance("fingerprint", mark, str, expectation)
        return f"fingerprint {mark}", True
    name = name_of_function(inner)
    if name is not None:
        return name, True
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    version = "" if offered.fingerprint_changes is None else f" {offered.fingerprint_changes()}"
    return f"{named.__module__}:{named.__qualname__} {_token_of(inner)}{version}", False


_TOKENS: dict[int, str] = {}  # by the ``id`` of a living object


def _token_of(obj: Any) -> str:
    """Return a random number that an object has for its lifetime, in this process.

    Each access to a method creates another object, so a method has the numbers of its object and its function.
    """
    if isinstance(obj, types.MethodType):
        return f"{_token_of(obj.__self__)} {_token_of(obj.__func__)}"
    token = _TOKENS.get(id(obj))
    if token is None:
        token = secrets.token_hex(16)
        with contextlib.suppress(TypeError):  # an object without weak references gets another identity at each wrap
            weakref.finalize(obj, _TOKENS.pop, id(obj), None)
            _TOKENS[id(obj)] = token
    return token
