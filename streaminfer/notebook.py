"""Stacks in a notebook's event loop: ``%load_ext streaminfer``, then ``%serve service``; or ``await serve(service)``.

A notebook's cells share one event loop, and a stack that one cell starts has to run for the next ones. A cell that is
run again makes a new stack, and the old one, which no name refers to any longer, must not go on holding its model and
threads. So stacks are served under a name, and a name serves one stack.
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
        name: what a later call replaces.

    Returns:
        The service.

    Raises:
        TypeError: it cannot be started here, as a class or a ``stack.blocking()``; what is served goes on.
    """
    check_instance("service", service, _starts_and_stops, "a Stack, or an object with async start and stop")
    await _stop(name)
    await adapt(service).start()
    replaced = _served.pop(name, None)  # another task served it while this stack started
    _served[name] = service
    if replaced is not None:
        await adapt(replaced).stop()
    return service


async def stop_serving() -> None:
    """Stop every stack that :func:`serve` started, the latest first, also where one fails to.

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
    """Add ``%serve name``, which awaits ``serve(name)``, and ``%serve``, which stops all, to a shell of IPython."""
    if _expand not in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.append(_expand)
        shell.register_magic_function(_misspelt, magic_name="serve")


def unload(shell: Any) -> None:
    """Take ``%serve`` away again; what it started goes on."""
    if _expand in shell.input_transformers_cleanup:
        shell.input_transformers_cleanup.remove(_expand)
        del shell.magics_manager.magics["line"]["serve"]


def _expand(lines: list[str]) -> list[str]:
    # a magic cannot await, so the line becomes code before IPython decides whether the cell does
    return [_await_of(match[1]) if (match := _MAGIC.match(line)) else line for line in lines]


def _misspelt(line: str) -> None:
    """Start the stack of a name, ``%serve service``, or stop all, ``%serve``; alone on a line that is not indented."""
    raise ValueError(
        f"%serve: expected the name of a stack, alone on a line that is not indented, got {line!r}; "
        "other code writes `await streaminfer.notebook.serve(stack)`"
    )


def _await_of(name: str | None) -> str:
    call = "stop_serving()" if name is None else f"serve({name}, {name!r})"
    return f'await __import__("streaminfer.notebook", fromlist=["*"]).{call};\n'
