"""Stacks in a notebook's event loop: ``%load_ext streaminfer``, then ``%serve service``; or ``await serve(service)``.

The cells of a notebook share one event loop, and a stack that one cell starts must keep running for the next cells. A
cell that is run again makes a new stack. No variable refers to the old one any more, but it would still hold its model
and threads. Stacks are therefore served under a name, and each name serves one stack.
"""

import asyncio
import inspect
import re
from typing import Any, TypeVar

from streaminfer._internal.validation import check_instance
from streaminfer._runtime.lifecycle import raise_first
from streaminfer.protocols import adapt

__all__ = ["load", "serve", "stop_serving", "unload"]

T = TypeVar("T")

_served: dict[str, Any] = {}
_MAGIC = re.compile(r"^%serve(?:[ \t]+([A-Za-z_]\w*))?[ \t]*$")


async def serve(service: T, name: str = "service") -> T:
    """Start a stack in the running event loop, and stop the one that was served under the same name.

    Args:
        service: a `Stack`, or another object whose ``start()`` and ``stop(*, drain)`` are ``async def``.
        name: a later call with the same name replaces this service.

    Returns:
        The service.

    Raises:
        TypeError: it cannot be started here, for example a class or a ``stack.blocking()``; the old one keeps running.
    """
    check_instance("service", service, _starts_and_stops, "a Stack, or an object with async start and stop")
    await _stop(name)
    await adapt(service).start()
    replaced = _served.pop(name, None)  # not None if another task used the name while this stack started
    _served[name] = service
    if replaced is not None:
        await adapt(replaced).stop()
    return service


async def stop_serving() -> None:
    """Stop every stack that :func:`serve` started, the latest first, even if one of them fails to stop.

    Raises:
        BaseException: the first error of a stack.
    """
    outcomes: list[object] = []
    for name in [*reversed(_served)]:
        outcomes += await asyncio.gather(_stop(name), return_exceptions=True)
    raise_first(outcomes)


def _starts_and_stops(service: Any) -> bool:
    node = adapt(service)
    if isinstance(service, type) or not (node.starts and node.stops):
        return False
    return node is service or all(map(inspect.iscoroutinefunction, (service.start, service.stop)))


async def _stop(name: str) -> None:
    if name in _served:
        await adapt(_served.pop(name)).stop()


def load(shell: Any) -> None:
    """Add magics to an IPython shell: ``%serve name`` runs ``await serve(name)``, ``%serve`` stops all stacks."""
    if _expand not in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.append(_expand)
        shell.register_magic_function(_misspelt, magic_name="serve")


def unload(shell: Any) -> None:
    """Remove ``%serve``; stacks that it started keep running."""
    if _expand in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(_expand)
        del shell.magics_manager.magics["line"]["serve"]


def _expand(lines: list[str]) -> list[str]:
    # a magic cannot await, so the line is rewritten before IPython decides whether the cell has an await
    return [_await_of(match[1]) if (match := _MAGIC.match(line)) else line for line in lines]


def _misspelt(line: str) -> None:
    """Start the stack with a name, ``%serve name``, or stop all stacks, ``%serve``; alone on an unindented line."""
    raise ValueError(
        "%serve: expected the name of a stack, alone on a line that is not indented, in a later cell than %load_ext, "
        f"got {line!r}; other code writes `await streaminfer.notebook.serve(stack)`"
    )


def _await_of(name: str | None) -> str:
    call = "stop_serving()" if name is None else f"serve({name}, {name!r})"
    return f'await __import__("streaminfer.notebook", fromlist=["*"]).{call};\n'
