"""`PacketConnection`: a TCP connection between two network namespaces of this process, over a lossy link."""

import asyncio
import ctypes
import itertools
import os
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Self

from streaminfer.loadtest.path.network import Link, NetworkProfile
from streaminfer.loadtest.path.packets.packet_carrier import ADDRESSES, carry, join, missing_parts

__all__ = ["PacketConnection"]

_NEW_NETWORK = 0x40000000
"""``CLONE_NEWNET`` of ``unshare``: only the calling thread moves to a new network namespace."""
_numbers = itertools.count()


class PacketConnection:
    """A TCP connection with the kernel's real packets, over a link that delays and loses them; needs root.

    Each end is a socket of this process in a separate network namespace, which lives as long as the socket.

    Args:
        network: profile of both directions.
        seed: seed of jitter and loss.

    Attributes:
        sender: the sending end, once the connection is open.
        receiver: the receiving end, once the connection is open.

    Raises:
        OSError: this machine lacks a requirement, which the message names; raised on entry.
    """

    sender: socket.socket
    receiver: socket.socket

    def __init__(self, network: NetworkProfile, *, seed: int = 0) -> None:
        self._links = (Link(network, seed), Link(network, seed + 1))
        self._carrier: threading.Thread | None = None
        self._tuns: list[int] = []
        self._ended = -1

    async def __aenter__(self) -> Self:
        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])  # the thread cannot be cancelled
            if opening.exception() is None:
                await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        for end in (self.sender, self.receiver):
            end.close()

    async def stop(self) -> None:
        """Stop carrying packets. Close the ends only afterwards: the devices disappear with their namespaces."""
        await asyncio.to_thread(self._close)

    def _open(self) -> None:
        if missing := missing_parts():
            raise OSError(f"packets between network namespaces: this machine lacks {', '.join(missing)}")
        number = f"{os.getpid() % 100_000:x}-{next(_numbers) % 10_000:x}"
        self._ended = os.eventfd(0)
        # a socket keeps the namespace of the thread that made it, even after the thread has ended; without a socket the
        # devices disappear with the threads, so the carrier must end first
        with ThreadPoolExecutor(1, "namespace") as first, ThreadPoolExecutor(1, "namespace") as second:
            try:
                for side, namespace in enumerate((first, second)):
                    name, (own, other) = f"si{number}{'ab'[side]}", ADDRESSES if side == 0 else ADDRESSES[::-1]
                    self._tuns.append(join(namespace.submit(_leave_network).result(), name, own, other))
                self._carrier = threading.Thread(
                    target=carry, args=(self._tuns, self._links, self._ended), name="packets", daemon=True
                )
                self._carrier.start()
                with second.submit(socket.create_server, (ADDRESSES[1], 0)).result() as server:
                    address = (ADDRESSES[1], server.getsockname()[1])
                    self.sender = first.submit(socket.create_connection, address).result()
                    self.receiver = server.accept()[0]
                for end in (self.sender, self.receiver):
                    end.setblocking(False)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    # without a network the sockets cannot close TCP properly, and would keep the namespace for minutes
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except BaseException:
                self._close()
                raise

    def _close(self) -> None:
        if self._ended < 0:
            return
        os.eventfd_write(self._ended, 1)
        if self._carrier is not None:
            self._carrier.join()
        for file in (*self._tuns, self._ended):
            os.close(file)
        self._tuns.clear()
        self._ended = -1


def _leave_network() -> int:
    """Move this thread to a new network namespace, and return the thread's id."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return threading.get_native_id()
