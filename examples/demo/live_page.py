"""The live page of the demo's services, served while the demo runs; without a browser it does nothing."""

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

import uvicorn

import streaminfer as si
from streaminfer.protocols import Node

__all__ = ["serve_page_during", "show"]

T = TypeVar("T")


class _Services(Node):
    """Services of the demo that are running; the demo makes one after the other."""

    name = "demo"

    def __init__(self) -> None:
        self.stacks: weakref.WeakValueDictionary[str, si.Stack] = weakref.WeakValueDictionary()

    @property
    def children(self) -> Mapping[str, Any]:
        """Return the running services by the name of their telemetry."""
        return {name: stack for name, stack in self.stacks.items() if stack.ready}

    async def call(self, request: si.Request) -> si.Response:
        """Raise an error: the page reads the statistics and sends no requests."""
        raise NotImplementedError


class _PageServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave Ctrl-C to the demo."""
        yield


_services = _Services()


def show(stack: si.Stack) -> si.Stack:
    """Show a stack on the page while it runs; return it."""
    _services.stacks[stack.layers[0].name] = stack
    return stack


async def serve_page_during(work: Coroutine[Any, Any, T], say: Callable[[str], None]) -> T:
    """Await some work, and serve the page until it ends.

    Args:
        work: the demo.
        say: called with the address of the page.
    """
    page = si.telemetry.dashboard(_services)
    config = uvicorn.Config(page, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=0)
    server = _PageServer(config)
    serving = asyncio.ensure_future(server.serve())
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    if server.started:
        say("live page while the demo runs: http://{}:{}/".format(*server.servers[0].sockets[0].getsockname()))
    try:
        return await work
    finally:
        # the server logs an error when it shuts down before the browsers leave
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        server.should_exit = True
        await serving
