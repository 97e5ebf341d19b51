"""Real packets between two network namespaces, delayed and lost as a link says, where the kernel has no ``tc netem``.

*Design.* A TUN device in each namespace; a loop reads the packets of one and writes them to the other when the link of
that direction lets them arrive. Packets of IPv4 are carried, in order, as through one queue. It needs root, or
``CAP_NET_ADMIN`` and ``CAP_SYS_ADMIN``, and ``/dev/net/tun``. After ``netemu.py``, which the project's maintainers
share between machines.
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
    """One direction."""

    def send(self, size: int, now_ns: int) -> int | None:
        """Return when a packet arrives; ``None``: never."""


def missing_parts() -> list[str]:
    """Return what this machine lacks for it."""
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
    """Return a TUN device in a namespace; packets of the namespace are read from it and written to it.

    Args:
        pid: of a process, or a thread, in the namespace.
        device: its name.
        address: of the namespace.
        peer: of the other one.
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
    """Carry packets from each device over its link to the other.

    Args:
        tuns: two devices.
        links: from the first, and from the second.
        ended: a file descriptor that becomes readable at the end; ``None``: it ends with the process.
    """
    poll = select.poll()
    for file in (*tuns, *([] if ended is None else [ended])):
        poll.register(file, select.POLLIN)
    way = {tuns[0]: (links[0], tuns[1]), tuns[1]: (links[1], tuns[0])}
    queue: list[tuple[int, int, int, bytes]] = []
    number = 0
    while True:
        wait_ms = max(0, queue[0][0] - time.monotonic_ns()) / 1e6 if queue else 1e3
        for file, _ in poll.poll(wait_ms):
            if file == ended:
                return
            packet = os.read(file, PACKET)
            link, target = way[file]
            if packet[0] >> 4 != IPV4:  # the kernel's own, at instants that no seed repeats
                continue
            arrives_ns = link.send(len(packet), time.monotonic_ns())
            if arrives_ns is not None:
                number += 1
                heapq.heappush(queue, (arrives_ns, number, target, packet))
        while queue and queue[0][0] <= time.monotonic_ns():
            _, _, target, packet = heapq.heappop(queue)
            os.write(target, packet)
