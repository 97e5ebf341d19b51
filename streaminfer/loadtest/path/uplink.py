"""Units of a codec over a link: cut into packets, completed by retransmission, or lost."""

import attrs

from streaminfer.loadtest.path.network import Link, NetworkProfile

__all__ = ["PACKET_BYTES", "Arrival", "Uplink"]

PACKET_BYTES = 1_200
"""Payload of an RTP packet that fits every path."""
HEADER_BYTES = 40
"""IP, UDP and RTP."""


@attrs.frozen(slots=True)
class Arrival:
    """One unit at the receiver.

    Attributes:
        at_ns: when its last packet came; ``None``: it never was complete.
        packets: how many it had.
        lost: packets that were lost at first.
        resent: packets that were sent again, with repetitions.
    """

    at_ns: int | None
    packets: int
    lost: int
    resent: int


class Uplink:
    """Transport of units over one link, in order; a state machine.

    A packet behind a lost one shows the gap, the receiver asks for it, and it is sent again: three ways of a packet
    for each repetition. The first way begins when the unit has left the queue; the others do not wait at the rate
    limit, because they are few.

    Args:
        profile: of the network.
        seed: of jitter and loss.
    """

    def __init__(self, profile: NetworkProfile, seed: int = 0) -> None:
        self._link = Link(profile, seed)
        self._retransmits = profile.retransmits
        self._last_ns = 0

    def send(self, size: int, now_ns: int) -> Arrival:
        """Send one unit.

        Args:
            size: bytes.
            now_ns: when it is sent, not before those of earlier calls.
        """
        packets = max(1, -(-size // PACKET_BYTES))
        at_ns, lost = self._link.send_burst(size + packets * HEADER_BYTES, packets, now_ns)
        left_ns = max(now_ns, self._link.free_ns)
        complete, resent = True, 0
        for _ in range(lost):
            arrived_ns, times = self._send_again(left_ns)
            resent += times
            if arrived_ns is None:
                complete = False
            else:
                at_ns = max(at_ns, arrived_ns)
        if complete:
            self._last_ns = at_ns = max(at_ns, self._last_ns)
        return Arrival(at_ns if complete else None, packets, lost, resent)

    def delay_ns(self, now_ns: int) -> int:
        """Return the delay, without jitter, of what is sent at an instant."""
        return self._link.delay_ns(now_ns)

    def due_ns(self, now_ns: int) -> int:
        """Return when the unit that was sent last at an instant should come, without jitter."""
        left_ns = max(now_ns, self._link.free_ns)
        return left_ns + self._link.delay_ns(left_ns)

    def _send_again(self, sent_ns: int) -> tuple[int | None, int]:
        link, at_ns = self._link, sent_ns
        for times in range(1, self._retransmits + 1):
            for _ in ("the gap is seen", "a repeat is requested"):
                at_ns, _lost = link.send_alone(at_ns)  # a later packet shows it, or asks again
            at_ns, lost = link.send_alone(at_ns)
            if not lost:
                return at_ns, times
        return None, self._retransmits
