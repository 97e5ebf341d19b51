"""TCP proxy on loopback that terminates TLS, and stalls, delays, cuts or sends noise, as networks do.

It runs in the event loop of the caller: ``async with Proxy("127.0.0.1:8001") as proxy: ... proxy.url``.
"""

import asyncio
import contextlib
import random
import ssl
from types import TracebackType
from typing import Self

from servers.process import HOST, free_ports

__all__ = ["Proxy"]

CHUNK = 64 * 1024
LINGER_S = 1.0  # longer than a server needs for calls in flight when their client is cut off


class Proxy:
    """Proxy that forwards bytes to a target; all settings may change while connections are open.

    Thread-safety: one event loop.

    Args:
        target: ``host:port``.
        tls: context that terminates the TLS of the clients; the target gets plain text.

    Attributes:
        url: ``host:port`` of loopback, the same after :meth:`refuse` and :meth:`accept`.
        delay_s: delay of each chunk of up to 64 KiB, each way.
        bytes_per_s: the bandwidth of each connection, each way; ``None``: unlimited.
        noise: replaces responses by as many random bytes.
        connections: number of connected clients, without forgotten ones.
        accepted: number of clients that have ever connected.
    """

    def __init__(self, target: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._target, _, port = target.rpartition(":")
        self._target_port = int(port)
        self._tls = tls
        (self._port,) = free_ports(1)
        self.url = f"{HOST}:{self._port}"
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.noise = False
        self.accepted = 0
        self._requests_flow = asyncio.Event()
        self._answers_flow = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._forgotten: set[asyncio.StreamWriter] = set()
        self._cut_off: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._random = random.Random(5)
        self._drops = False
        self.flow()

    @property
    def connections(self) -> int:
        return len(self._open - self._forgotten)

    def stall(self, *, requests: bool = True, answers: bool = True) -> None:
        """Stop forwarding; connections stay open, and new ones are accepted but get nothing either."""
        if requests:
            self._requests_flow.clear()
        if answers:
            self._answers_flow.clear()

    def flow(self, *, drop: bool = False) -> None:
        """Forward again, including the bytes that were held back.

        Args:
            drop: discard these bytes and end their connections, so that the target gets no call of a client that left.
        """
        self._drops = drop
        self._requests_flow.set()
        self._answers_flow.set()

    def forget(self) -> None:
        """Stop forwarding on all open connections for good, without closing them; new connections work.

        A firewall that lost its table does this.
        """
        self.stall()
        self._forgotten.update(self._open)
        self._requests_flow, self._answers_flow = asyncio.Event(), asyncio.Event()
        self.flow()

    def cut(self) -> None:
        """Abort the connections of all clients.

        The target has ``LINGER_S`` to complete the calls in flight, and sees no cancelled call: a Triton before 2.57
        can crash when a gRPC call is cancelled while it completes (triton-inference-server/server, issues 7368 and
        8034).
        """
        self._cut_off.update(self._open)
        for client in self._open:
            client.transport.abort()

    async def refuse(self) -> None:
        """Cut connections, and accept no new ones."""
        if self._server is not None:
            server, self._server = self._server, None
            server.close()
            self.cut()
            await server.wait_closed()

    async def accept(self) -> None:
        """Accept connections, always on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self._port, ssl=self._tls)

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.refuse()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        # in a separate task, because the tasks of asyncio's server must not be cancelled
        task = asyncio.create_task(self._carry(from_client, to_client))
        self._tasks.add(task)
        await asyncio.wait([task])
        self._tasks.discard(task)

    async def _carry(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._open.add(to_client)
        to_server: asyncio.StreamWriter | None = None
        requests_flow, answers_flow = self._requests_flow, self._answers_flow
        try:
            await requests_flow.wait()
            from_server, to_server = await asyncio.open_connection(self._target, self._target_port)
            pumps = [
                asyncio.create_task(self._pump(from_client, to_server, requests_flow, answers=False)),
                asyncio.create_task(self._pump(from_server, to_client, answers_flow, answers=True)),
            ]
            try:
                # the end of one direction ends both, because gRPC and HTTP keep no half-open connections
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
            if to_client in self._cut_off:
                self._open.discard(to_client)
                await self._drop_answers(from_server)
            else:
                to_client.close()  # bytes that were written are still sent
                await to_client.wait_closed()
        except OSError:
            pass  # the target accepts no connection, or one of the two was cut, so the other is cut too
        finally:
            for writer in (to_client, to_server):
                if writer is not None:
                    writer.transport.abort()
            self._open.discard(to_client)
            self._cut_off.discard(to_client)

    async def _drop_answers(self, from_server: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):  # the time is up, or the target has ended the connection
            async with asyncio.timeout(LINGER_S):
                while await from_server.read(CHUNK):
                    pass

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: asyncio.Event, *, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):  # the connection was cut
            while chunk := await reader.read(CHUNK):
                pause_s = self.delay_s + (len(chunk) / self.bytes_per_s if self.bytes_per_s else 0.0)
                if pause_s:
                    await asyncio.sleep(pause_s)
                if not flow.is_set():
                    await flow.wait()
                    if self._drops:
                        return
                writer.write(self._random.randbytes(len(chunk)) if answers and self.noise else chunk)
                await writer.drain()
