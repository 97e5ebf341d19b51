"""A network between two processes that loses and delays packets, for machines whose kernel has no ``tc netem``.

Each process runs in its own network namespace, as ``unshare --net`` starts it; the namespaces end with their
processes. Two TUN devices join them, and this program carries the packets::

    python lossy_network.py PID PID --network lte
    python lossy_network.py PID PID --loss 5 --delay 60 --jitter 50

The process of the first PID has 10.203.8.1, the other 10.203.8.2. The network is a profile of
`streaminfer.loadtest.path`, by its name or in a file: rate, queue, losses in runs, delays with a long tail; or it has
independent losses and uniform jitter. Both directions have the same properties. The program carries IPv4 packets and
keeps their order, like one queue. It needs root and ``/dev/net/tun``.
"""

import argparse
import os
import random

from streaminfer.loadtest.path.packets.packet_carrier import ADDRESSES, carry, join, missing_parts

__all__ = ["ADDRESSES", "missing_parts"]


class UniformLink:
    """Link with independent losses and uniform jitter."""

    def __init__(self, loss: float, delay_s: float, jitter_s: float, seed: int) -> None:
        self._loss, self._delay_s, self._jitter_s = loss, delay_s, jitter_s
        self._chance = random.Random(seed)
        self._last_ns = 0

    def send(self, size: int, now_ns: int) -> int | None:  # noqa: ARG002 - signature of all links
        if self._chance.random() < self._loss:
            return None
        delay_s = max(0.0, self._delay_s + self._chance.uniform(-self._jitter_s, self._jitter_s))
        self._last_ns = max(self._last_ns, now_ns + round(delay_s * 1e9))
        return self._last_ns


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
        from streaminfer.loadtest.path.network import Link, network_profile

        carry(tuns, [Link(network_profile(options.network), seed) for seed in seeds])


if __name__ == "__main__":
    main()
