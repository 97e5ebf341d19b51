"""Transport of encoded units over a link: cut into packets, completed by retransmission, or lost.

*Design.* The arrival of a unit is known when it is sent, before the receiver can request a lost packet. The queue
therefore reserves time for each retransmission directly behind the unit, before newer units, as senders of WebRTC send
retransmissions first. A full queue drops a retransmission like any other packet, and the unit is lost. A packet that
the queue dropped is not sent again: while the link is overloaded, its queue stays full.

*Invariants.* Units and retransmissions together never exceed the rate limit. The delay of a complete unit is at most
the queue, one packet at the rate limit, one delay, and three delays per retransmission of a packet.
"""

import attrs

from streaminfer.loadtest.path.network import Link, NetworkProfile

__all__ = ["PACKET_BYTES", "Arrival", "Uplink"]

PACKET_BYTES = 1_200
"""Payload of an RTP packet, small enough for every network path."""
HEADER_BYTES = 40
"""IP, UDP and RTP."""


@attrs.frozen(slots=True)
class Arrival:
    """One unit at the receiver.

    Attributes:
        at_ns: when its last packet arrived; ``None``: the unit was never complete.
        packets: number of its packets.
        lost: packets that the queue dropped, or that were lost when first sent.
        resent: retransmissions; a packet counts each time it is sent again.
    """

    at_ns: int | None
    packets: int
    lost: int
    resent: int


class Uplink:
    """Transport of units over one link, in order; a state machine.

    A retransmission takes three one-way delays: a later packet shows the gap, the receiver requests the lost packet,
    and the sender sends it again. The first delay begins when the unit has left the queue. Retransmissions count
    toward the rate limit. If the full queue drops a packet, the unit is lost.

    Args:
        profile: profile of the network.
        seed: seed of jitter and loss.
    """

    def __init__(self, profile: NetworkProfile, seed: int = 0) -> None:
        self._link = Link(profile, seed)
        self._retransmits = profile.retransmits
        self._sent_ns = 0  # when the last unit left the queue, without its retransmissions
        self._last_ns = 0

    def send(self, size: int, now_ns: int) -> Arrival:
        """Send one unit and return its arrival.

        Args:
            size: bytes of the unit.
            now_ns: send time, not before that of an earlier call.
        """
        packets = max(1, -(-size // PACKET_BYTES))
        size += packets * HEADER_BYTES
        at_ns, dropped, lost = self._link.send_burst(size, packets, now_ns)
        self._sent_ns = max(now_ns, self._link.free_ns)
        complete, resent = not dropped, 0
        for _ in range(lost):
            arrived_ns, times = self._retransmit(size / packets, now_ns)
            resent += times
            if arrived_ns is None:
                complete = False
            else:
                at_ns = max(at_ns, arrived_ns)
        if complete:
            self._last_ns = at_ns = max(at_ns, self._last_ns)
        return Arrival(at_ns if complete else None, packets, dropped + lost, resent)

    def delay_ns(self, now_ns: int) -> int:
        """Return the delay, without jitter, of a packet that is sent at an instant."""
        return self._link.delay_ns(now_ns)

    def due_ns(self, now_ns: int) -> int:
        """Return when the last unit, sent at an instant, should arrive without jitter."""
        sent_ns = max(now_ns, self._sent_ns)
        return sent_ns + self._link.delay_ns(sent_ns)

    def _retransmit(self, size: float, now_ns: int) -> tuple[int | None, int]:
        """Send a lost packet again; return its arrival, ``None`` if it never arrives, and how often it was sent."""
        link, at_ns = self._link, self._sent_ns
        for times in range(1, self._retransmits + 1):
            left_ns = link.reserve(size, now_ns)
            if left_ns is None:
                return None, times - 1
            for _ in ("the gap is seen", "a repeat is requested"):
                at_ns, _lost = link.send_alone(at_ns)  # if lost, a later packet does the same
            at_ns, lost = link.send_alone(max(at_ns, left_ns))
            if not lost:
                return at_ns, times
        return None, self._retransmits
