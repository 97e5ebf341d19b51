"""The faults of the drill, with the functions that inject and repair each, and their rig."""

import asyncio
import gc
import itertools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Literal, Self

import attrs

from servers.garbage import KINDS, GrpcGarbage, HttpGarbage
from servers.network import Proxy
from servers.triton_server import TritonServer

__all__ = ["FAULTS", "Fault", "Protocol", "Rig"]

Protocol = Literal["grpc", "http"]
Way = Literal["direct", "proxy", "garbage"]
MODEL = "mlp"


class Rig:
    """Server, and the path to it: direct, through a network proxy, or through a proxy that corrupts responses.

    Attributes:
        server: the real server.
        proxy: network proxy, on the path if ``way`` is ``"proxy"``.
        garbage: proxy that corrupts responses, on the path if ``way`` is ``"garbage"``.
        url: ``host:port`` at which the backend under test reaches the server.
    """

    def __init__(self, server: TritonServer, way: Way, protocol: Protocol = "grpc") -> None:
        self.server = server
        target = server.grpc_url if protocol == "grpc" else server.http_url
        self.proxy = Proxy(target)
        self.garbage = GrpcGarbage(target) if protocol == "grpc" else HttpGarbage(target)
        self.url = {"direct": target, "proxy": self.proxy.url, "garbage": self.garbage.url}[way]
        self._way = way
        self._exits = AsyncExitStack()
        self._kinds = itertools.cycle(KINDS)

    def next_kind(self) -> str:
        """Return the next kind of garbage, in turn."""
        return next(self._kinds)

    async def connections_left(self) -> int:
        """Return the number of connections to the proxy that stay open, after waiting a second for them to close.

        gRPC keeps a connection while one of its calls is referenced. The traceback of its error references a call that
        was cut off, until the garbage collector finds the cycle.
        """
        gc.collect()
        for _ in range(100):
            if not self.proxy.connections:
                break
            await asyncio.sleep(0.01)
        return self.proxy.connections

    async def __aenter__(self) -> Self:
        if self._way == "proxy":
            await self._exits.enter_async_context(self.proxy)
        if self._way == "garbage":
            await self._exits.enter_async_context(self.garbage)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()


@attrs.frozen
class Fault:
    """Fault that the drill injects and repairs.

    Attributes:
        name: name of the fault.
        way: path to the server that the fault needs.
        strike: injects the fault.
        mend: repairs the fault; returns when the server works again.
        lasts_s: minimum seconds from the injection to the repair.
        is_gentle: true if some responses of the server still pass during the fault.
    """

    name: str
    way: Way
    strike: Callable[[Rig], Awaitable[None]]
    mend: Callable[[Rig], Awaitable[None]]
    lasts_s: float = 0.6
    is_gentle: bool = False


def _on_server(action: Callable[[TritonServer], object]) -> Callable[[Rig], Awaitable[None]]:
    """Return an action that runs in a thread, so that it does not block the event loop."""

    async def act(rig: Rig) -> None:
        await asyncio.to_thread(action, rig.server)

    return act


def _on_proxy(action: Callable[[Proxy], object]) -> Callable[[Rig], Awaitable[None]]:
    async def act(rig: Rig) -> None:
        result = action(rig.proxy)
        if isinstance(result, Awaitable):
            await result

    return act


def _shape(proxy: Proxy, delay_s: float, bytes_per_s: float | None) -> None:
    proxy.delay_s, proxy.bytes_per_s = delay_s, bytes_per_s


async def _cut_often(rig: Rig) -> None:
    for _ in range(20):
        rig.proxy.cut()
        await asyncio.sleep(0.03)


async def _garble(rig: Rig) -> None:
    rig.garbage.kind = rig.next_kind()


async def _speak_clearly(rig: Rig) -> None:
    rig.garbage.kind = None


def _noisy(noise: bool) -> Callable[[Rig], Awaitable[None]]:
    return _on_proxy(lambda proxy: setattr(proxy, "noise", noise))


FLOW = _on_proxy(Proxy.flow)
RESTART = _on_server(TritonServer.restart)

FAULTS = {
    fault.name: fault
    for fault in (
        Fault(
            "model process killed",
            "direct",
            _on_server(lambda server: server.kill_model(MODEL)),
            _on_server(lambda server: server.repair(MODEL)),
            lasts_s=1.5,
        ),
        Fault("server stopped", "direct", _on_server(TritonServer.freeze), _on_server(TritonServer.thaw)),
        Fault("SIGTERM", "direct", _on_server(TritonServer.terminate), RESTART, lasts_s=1.0),
        Fault("killed and restarted", "direct", _on_server(TritonServer.kill), RESTART, lasts_s=0.0),
        Fault("port closed", "proxy", _on_proxy(Proxy.refuse), _on_proxy(Proxy.accept)),
        Fault("garbage", "garbage", _garble, _speak_clearly),
        Fault("noise", "proxy", _noisy(True), _noisy(False)),
        Fault("network stalls", "proxy", _on_proxy(Proxy.stall), FLOW),
        Fault("requests stall", "proxy", _on_proxy(lambda proxy: proxy.stall(answers=False)), FLOW),
        Fault("responses stall", "proxy", _on_proxy(lambda proxy: proxy.stall(requests=False)), FLOW),
        Fault(
            "network slow",
            "proxy",
            _on_proxy(lambda proxy: _shape(proxy, 0.1, 4000.0)),
            _on_proxy(lambda proxy: _shape(proxy, 0.0, None)),
        ),
        Fault("connections cut", "proxy", _cut_often, FLOW, lasts_s=0.0, is_gentle=True),
        Fault("connections forgotten", "proxy", _on_proxy(Proxy.forget), FLOW),
    )
}
