"""Which function this is, in words that another process would use for the same one."""

from __future__ import annotations

import sys
import types
from typing import Any

__all__ = ["name_of_function"]


def name_of_function(function: Any) -> str | None:
    """Module and qualified name, if these say all.

    They do for a function that stands in a module or a class and closes over nothing; also for one that Numba compiled.
    Every script's module is called ``__main__``, so the script's file is named as well.

    Returns:
        ``None`` for anything else: a lambda, a method of an object, a function that another one made, one that was
        renamed, or one that was typed in, where the next of the same name may do something else.
    """
    plain = getattr(function, "py_func", function)
    if not isinstance(plain, types.FunctionType):
        return None
    name = plain.__qualname__
    if "<" in name or plain.__code__.co_qualname != name or not set(plain.__code__.co_freevars) <= {"__class__"}:
        return None
    module = plain.__module__
    if module == "__main__":
        file = getattr(sys.modules.get(module), "__file__", None)
        if file is None:
            return None
        module = f"{module} {file}"
    return f"{module}:{name}"
