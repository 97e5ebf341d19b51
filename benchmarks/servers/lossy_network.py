"""A network between two processes that loses and delays packets, for machines whose kernel has no ``tc netem``.

Each process runs in a network namespace of its own, as ``unshare --net`` starts it; the namespaces end with their
processes. Two TUN devices join them, and this program carries the packets::

    python lossy_network.py PID PID --network lte
    python lossy_network.py PID PID --loss 5 --delay 60 --jitter 50

The process of the first PID has 10.203.8.1, the other 10.203.8.2. The network is a profile of
`streaminfer.loadtest.path`, by its name or in a file: rate, queue, losses in runs, delays with a long tail; or it has
independent losses and uniform jitter. Both directions are alike. Packets of IPv4 are carried; they keep
their order, as they do through one queue. It needs root and ``/dev/net/tun``. After ``netemu.py``, which the project's
maintainers share between machines.
"""

import argparse
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["ADDRESSES", "missing_parts"]

ADDRESSES = ("10.203.8.1", "10.203.8.2")
TUN = Path("/dev/net/tun")
TOOLS = ("ip", "nsenter", "unshare")
SET_INTERFACE, IS_TUN, WITHOUT_HEADER = 0x400454CA, 0x1, 0x1000
PACKET = 65_535
IPV4 = 4


def missing_parts() -> list[str]:
    """What this machine lacks for it."""
    missing = [] if os.geteuid() == 0 else ["root"]
    missing += [tool for tool in TOOLS if shutil.which(tool) is None]
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError:
        missing.append(str(TUN))
    probe = [str(shutil.which("unshare")), "--net", "true"]
    if not missing and subprocess.run(probe, capture_output=True, check=False).returncode:
        missing.append("the right to make network namespaces")
    return missing


def join(pid: int, device: str, address: str, peer: str) -> int:
    """A TUN device in the namespace of a process; its packets are read from and written to what is returned."""
    tun = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, SET_INTERFACE, struct.pack("16sH22x", device.encode(), IS_TUN | WITHOUT_HEADER))
    inside = ["nsenter", "--target", str(pid), "--net"]
    for command in (
        ["ip", "link", "set", device, "netns", str(pid)],
        [*inside, "ip", "address", "add", address, "peer", peer, "dev", device],
        [*inside, "ip", "link", "set", device, "mtu", "1500", "txqueuelen", "1000", "up"],
        [*inside, "ip", "link", "set", "lo", "up"],
    ):
        subprocess.run(command, check=True)
    return tun


class Way(Protocol):
    """One direction."""

    def send(self, size: int, now_ns: int) -> int | None:
        """Return when a packet arrives; ``None``: never."""


class UniformLink:
    """Independent losses, uniform jitter."""

    def __init__(self, loss: float, delay_s: float, jitter_s: float, seed: int) -> None:
        self._loss, self._delay_s, self._jitter_s = loss, delay_s, jitter_s
        self._chance = random.Random(seed)
        self._last_ns = 0

    def send(self, size: int, now_ns: int) -> int | None:  # noqa: ARG002 - as any link
        if self._chance.random() < self._loss:
            return None
        delay_s = max(0.0, self._delay_s + self._chance.uniform(-self._jitter_s, self._jitter_s))
        self._last_ns = max(self._last_ns, now_ns + round(delay_s * 1e9))
        return self._last_ns


def carry(tuns: list[int], links: Sequence[Way]) -> None:
    """Carry packets from each device over its link to the other until the process ends."""
    poll = select.poll()
    for tun in tuns:
        poll.register(tun, select.POLLIN)
    way = {tuns[0]: (links[0], tuns[1]), tuns[1]: (links[1], tuns[0])}
    queue: list[tuple[int, int, int, bytes]] = []
    number = 0
    while True:
        wait_ms = max(0, queue[0][0] - time.monotonic_ns()) / 1e6 if queue else 1e3
        for tun, _ in poll.poll(wait_ms):
            packet = os.read(tun, PACKET)
            link, target = way[tun]
            if packet[0] >> 4 != IPV4:  # the kernel's own, at instants that no seed repeats
                continue
            arrives_ns = link.send(len(packet), time.monotonic_ns())
            if arrives_ns is not None:
                number += 1
                heapq.heappush(queue, (arrives_ns, number, target, packet))
        while queue and queue[0][0] <= time.monotonic_ns():
            _, _, tun, packet = heapq.heappop(queue)
            os.write(tun, packet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pids", type=int, nargs=2)
    parser.add_argument("--network", help="profile of a network, or a TOML or JSON file, in place of the next three")
    parser.add_argument("--loss", type=float, default=0.0, help="percent")
    parser.add_argument("--delay", type=float, default=0.0, help="milliseconds")
    parser.add_argument("--jitter", type=float, default=0.0, help="milliseconds, more or less")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    first, second = ADDRESSES
    unique = os.getpid() % 1_000_000
    tuns = [
        join(options.pids[0], f"lossyA{unique}", first, second),
        join(options.pids[1], f"lossyB{unique}", second, first),
    ]
    seeds = options.seed, options.seed + 1
    print("up", flush=True)
    if options.network is None:
        loss, delay_s, jitter_s = options.loss / 100, options.delay / 1e3, options.jitter / 1e3
        carry(tuns, [UniformLink(loss, delay_s, jitter_s, seed) for seed in seeds])
    else:
        from streaminfer.loadtest.path.network import Link, network_profile  # tests look for missing parts without it

        carry(tuns, [Link(network_profile(options.network), seed) for seed in seeds])


if __name__ == "__main__":
    main()
