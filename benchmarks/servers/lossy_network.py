"""A network between two processes that loses and delays packets, for machines whose kernel has no ``tc netem``.

Each process runs in a network namespace of its own, as ``unshare --net`` starts it; the namespaces end with their
processes. Two TUN devices join them, and this program carries the packets::

    python lossy_network.py PID PID --loss 5 --delay 60 --jitter 50

The process of the first PID has 10.203.8.1, the other 10.203.8.2. Delay, jitter and loss apply to each direction.
Packets keep their order, as they do through one queue. It needs root and ``/dev/net/tun``. After ``netemu.py``, which
the project's maintainers share between machines.
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
from pathlib import Path

__all__ = ["ADDRESSES", "missing_parts"]

ADDRESSES = ("10.203.8.1", "10.203.8.2")
TUN = Path("/dev/net/tun")
TOOLS = ("ip", "nsenter", "unshare")
SET_INTERFACE, IS_TUN, WITHOUT_HEADER = 0x400454CA, 0x1, 0x1000
PACKET = 65_535


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


def carry(tuns: list[int], loss: float, delay_s: float, jitter_s: float, seed: int) -> None:
    """Carry packets until the process ends."""
    chance = random.Random(seed)
    poll = select.poll()
    for tun in tuns:
        poll.register(tun, select.POLLIN)
    way = {tuns[0]: tuns[1], tuns[1]: tuns[0]}
    last_s = dict.fromkeys(tuns, 0.0)
    queue: list[tuple[float, int, int, bytes]] = []
    number = 0
    while True:
        wait_ms = max(0.0, queue[0][0] - time.monotonic()) * 1e3 if queue else 1e3
        for tun, _ in poll.poll(wait_ms):
            packet = os.read(tun, PACKET)
            if chance.random() < loss:
                continue
            due_s = time.monotonic() + max(0.0, delay_s + chance.uniform(-jitter_s, jitter_s))
            last_s[tun] = due_s = max(due_s, last_s[tun])
            number += 1
            heapq.heappush(queue, (due_s, number, way[tun], packet))
        while queue and queue[0][0] <= time.monotonic():
            _, _, tun, packet = heapq.heappop(queue)
            os.write(tun, packet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pids", type=int, nargs=2)
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
    print("up", flush=True)
    carry(tuns, options.loss / 100, options.delay / 1e3, options.jitter / 1e3, options.seed)


if __name__ == "__main__":
    main()
