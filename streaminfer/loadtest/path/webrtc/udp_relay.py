"""UDP relay between two peers that delays and loses packets like a network profile, repeatable by seed."""

import asyncio
import functools
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Self

from streaminfer.loadtest.path.network import Link, NetworkProfile

__all__ = ["UdpRelay"]

IP_UDP_BYTES = 28
Address = tuple[str, int]


class UdpRelay:
    """Relay of real UDP packets between two peers, over a simulated link in each direction.

    It has two sockets; each socket is the address of one peer, as the other peer sees it.

    Args:
        network: profile of both directions.
        seed: seed of jitter and loss.
        on_packet: called with each packet from the first peer: with ``arrived=False`` before the link can lose it, and
            with ``arrived=True`` when the relay forwards it.

    Attributes:
        lost: packets dropped in both directions.
        forwarded: packets forwarded in both directions.
    """

    def __init__(self, network: NetworkProfile, *, seed: int = 0, on_packet: Callable[..., None] | None = None) -> None:
        self.lost = self.forwarded = 0
        self._links = (Link(network, seed), Link(network, seed + 1))
        self._in_flight: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self._on_packet = on_packet
        self._last_ns = 0  # when the last packet arrives at the second peer
        self._sockets: list[asyncio.DatagramTransport] = []
        self._peers: list[Address | None] = [None, None]

    def connect(self, side: int, peer: Address) -> Address:
        """Register a peer, and return the address at which the other peer reaches it.

        Args:
            side: 0 for the first peer, 1 for the second.
            peer: address at which the peer listens.
        """
        self._peers[side] = peer
        return peer[0], int(self._sockets[side].get_extra_info("sockname")[1])

    def remaining_s(self) -> float:
        """Return the seconds until the last packet so far arrives at the second peer; negative if it has arrived."""
        return (self._last_ns - time.monotonic_ns()) / 1e9

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        try:
            for side in (0, 1):
                # packets to the socket of a side are for its peer; peers may use any address of this machine
                protocol = functools.partial(_Side, self._receive, side)
                any_address = ("0.0.0.0", 0)  # noqa: S104 - of this machine
                transport, _ = await loop.create_datagram_endpoint(protocol, local_addr=any_address)
                self._sockets.append(transport)
        except BaseException:
            self._abort()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._abort()
        await asyncio.sleep(0)  # asyncio closes the sockets in the next iteration of the loop

    def _abort(self) -> None:
        for transport in self._sockets:
            transport.abort()

    def _receive(self, side: int, data: bytes) -> None:
        if side == 1 and self._on_packet is not None:
            self._on_packet(data, arrived=False)
        now_ns = time.monotonic_ns()
        arrives_ns = self._links[side].send(len(data) + IP_UDP_BYTES, now_ns)
        if arrives_ns is None:
            self.lost += 1
            return
        if side == 1:
            self._last_ns = arrives_ns
        self._in_flight[side].append(data)
        asyncio.get_running_loop().call_later((arrives_ns - now_ns) / 1e9, self._forward, side)

    def _forward(self, side: int) -> None:
        data = self._in_flight[side].popleft()  # keeps the order: timers with equal instants do not
        peer, socket = self._peers[side], self._sockets[1 - side]
        if peer is not None and not socket.is_closing():
            self.forwarded += 1
            if side == 1 and self._on_packet is not None:
                self._on_packet(data, arrived=True)
            socket.sendto(data, peer)


class _Side(asyncio.DatagramProtocol):
    """One socket of a relay."""

    def __init__(self, receive: Callable[[int, bytes], None], side: int) -> None:
        self._receive = receive
        self._side = side

    def datagram_received(self, data: bytes, addr: Any) -> None:  # noqa: ARG002 - the protocol of asyncio
        self._receive(self._side, data)
