"""Real packets between two network namespaces, delayed and lost by a link, for kernels without ``tc netem``.

*Design.* Each namespace has a TUN device. A loop reads the packets of one device and writes them to the other at the
arrival time that the link of that direction returns. The loop carries IPv4 packets only, in order, as through one
queue. It needs ``/dev/net/tun``, and root or ``CAP_NET_ADMIN`` and ``CAP_SYS_ADMIN``. The design follows ``netemu.py``,
which the project's maintainers share between machines.
"""

import fcntl
import heapq
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

__all__ = ["ADDRESSES", "Way", "carry", "join", "missing_parts"]

ADDRESSES = ("10.203.8.1", "10.203.8.2")
TUN = Path("/dev/net/tun")
TOOLS = ("ip", "nsenter", "unshare")
SET_INTERFACE, IS_TUN, WITHOUT_HEADER = 0x400454CA, 0x1, 0x1000
PACKET = 65_535
IPV4 = 4


class Way(Protocol):
    """One direction of a link."""

    def send(self, size: int, now_ns: int) -> int | None:
        """Return the arrival time of a packet; ``None`` if it is lost."""


def missing_parts() -> list[str]:
    """Return what this machine lacks for packets between namespaces."""
    if sys.platform != "linux":
        return ["Linux"]
    missing = [] if os.geteuid() == 0 else ["root"]
    missing += [tool for tool in TOOLS if shutil.which(tool) is None]
    try:
        os.close(os.open(TUN, os.O_RDWR))
    except OSError:
        missing.append(str(TUN))
    probe = [str(shutil.which("unshare")), "--net", "true"]
    if not missing and subprocess.run(probe, capture_output=True, check=False).returncode:  # noqa: S603 - our own words
        missing.append("the right to make network namespaces")
    return missing


def join(pid: int, device: str, address: str, peer: str) -> int:
    """Create a TUN device in a namespace and return its file descriptor, to read and write packets of the namespace.

    Args:
        pid: id of a process or thread in the namespace.
        device: name of the device.
        address: address of the namespace.
        peer: address of the other namespace.
    """
    tun = os.open(TUN, os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, SET_INTERFACE, struct.pack("16sH22x", device.encode(), IS_TUN | WITHOUT_HEADER))
    inside = ["nsenter", "--target", str(pid), "--net"]
    for command in (
        ["ip", "link", "set", device, "netns", str(pid)],
        [*inside, "ip", "address", "add", address, "peer", peer, "dev", device],
        [*inside, "ip", "link", "set", device, "mtu", "1500", "txqueuelen", "1000", "up"],
        [*inside, "ip", "link", "set", "lo", "up"],
    ):
        subprocess.run(command, check=True)  # noqa: S603 - these words and our own numbers
    return tun


def carry(tuns: Sequence[int], links: Sequence[Way], ended: int | None = None) -> None:
    """Carry packets from each device over its link to the other device.

    Args:
        tuns: file descriptors of the two devices.
        links: the link from the first device, and the link from the second.
        ended: a file descriptor that becomes readable to end the loop; ``None``: the loop ends with the process.
    """
    poll = select.poll()
    for file in (*tuns, *([] if ended is None else [ended])):
        poll.register(file, select.POLLIN)
    routes = {tuns[0]: (links[0], tuns[1]), tuns[1]: (links[1], tuns[0])}
    queue: list[tuple[int, int, int, bytes]] = []
    number = 0
    while True:
        wait_ms = max(0, queue[0][0] - time.monotonic_ns()) / 1e6 if queue else 1e3
        for file, _ in poll.poll(wait_ms):
            if file == ended:
                return
            packet = os.read(file, PACKET)
            link, target = routes[file]
            if packet[0] >> 4 != IPV4:  # packets of the kernel itself, at instants that no seed repeats
                continue
            arrives_ns = link.send(len(packet), time.monotonic_ns())
            if arrives_ns is not None:
                number += 1
                heapq.heappush(queue, (arrives_ns, number, target, packet))
        while queue and queue[0][0] <= time.monotonic_ns():
            _, _, target, packet = heapq.heappop(queue)
            os.write(target, packet)
