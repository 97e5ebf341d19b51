"""UDP through a relay: both directions, loss by seed."""

import asyncio

import pytest
from waiting import until

from streaminfer.loadtest.path import NetworkProfile, UdpRelay

COUNT = 200
"""Packets per direction. A socket on Linux holds 256, and all arrive at once if the event loop is blocked."""


class Peer(asyncio.DatagramProtocol):
    def __init__(self):
        self.received = []

    def connection_made(self, transport):
        self.transport = transport
        self.address = transport.get_extra_info("sockname")

    def datagram_received(self, data, addr):
        self.received.append((data, addr))


async def exchange(network):
    """Send numbers both ways; return the peers, the addresses they know, and the relay."""
    loop = asyncio.get_running_loop()
    peers = [(await loop.create_datagram_endpoint(Peer, local_addr=("127.0.0.1", 0)))[1] for _ in range(2)]
    try:
        async with UdpRelay(network, seed=1) as relay:
            known = [relay.connect(side, peer.address) for side, peer in enumerate(peers)]
            for number in range(COUNT):
                for side, peer in enumerate(peers):
                    peer.transport.sendto(str(number).encode(), known[1 - side])
                await asyncio.sleep(0)
            await until(lambda: relay.lost + relay.forwarded == 2 * COUNT)
            await until(lambda: sum(len(it.received) for it in peers) == relay.forwarded)
            return peers, known, relay
    finally:
        for peer in peers:
            peer.transport.close()


def test_peers_exchange_packets_through_the_relay():
    peers, known, relay = asyncio.run(exchange(NetworkProfile(name="n")))

    assert [len(it.received) for it in peers] == [COUNT, COUNT]
    assert relay.lost == 0
    for side, peer in enumerate(peers):
        assert {addr[1] for _, addr in peer.received} == {known[1 - side][1]}


def test_packets_keep_their_order():
    """Packets behind a late one arrive at its instant, in order, although timers of one instant fire in any order."""
    peers, _, _ = asyncio.run(exchange(NetworkProfile(name="n", delay_s=0.005, jitter_s=0.01)))

    for peer in peers:
        assert [int(data) for data, _ in peer.received] == list(range(COUNT))


def test_packets_are_lost_by_the_profile():
    peers, _, relay = asyncio.run(exchange(NetworkProfile(name="n", loss=0.2)))

    assert 0.1 < relay.lost / (2 * COUNT) < 0.3
    assert sum(len(it.received) for it in peers) == relay.forwarded == 2 * COUNT - relay.lost


def test_a_relay_that_cannot_open_leaves_no_socket(monkeypatch):
    async def main():
        loop = asyncio.get_running_loop()
        create, made = loop.create_datagram_endpoint, []

        async def create_once(*args, **options):
            if made:
                raise OSError("no more sockets")
            made.append(await create(*args, **options))
            return made[0]

        monkeypatch.setattr(loop, "create_datagram_endpoint", create_once)
        with pytest.raises(OSError, match="no more sockets"):
            await UdpRelay(NetworkProfile(name="n")).__aenter__()
        return made[0][0].is_closing()

    assert asyncio.run(main())
