"""Units over a link: packets, retransmission, loss."""

import numpy as np
import pytest

from streaminfer.loadtest.path import NetworkProfile, Uplink

MS = 1_000_000


def test_unit_is_cut_into_packets():
    uplink = Uplink(NetworkProfile(name="n", delay_s=0.01))

    assert [uplink.send(size, 0).packets for size in (0, 1_200, 1_201, 12_000)] == [1, 1, 2, 10]


def test_rate_limits_a_unit():
    """Three packets and their headers take 3 × 40 + 3,000 bytes at 1 Mbit/s."""
    arrival = Uplink(NetworkProfile(name="n", rate=1_000_000, delay_s=0.01)).send(3_000, 0)

    assert arrival.at_ns == 10 * MS + round(3_120 * 8e9 / 1e6)


def test_lost_packet_comes_a_round_trip_later():
    uplink = Uplink(NetworkProfile(name="n", delay_s=0.01, loss=0.2, retransmits=50), seed=1)
    sent = [uplink.send(1_000, number * 100 * MS) for number in range(500)]
    once = [it.at_ns - number * 100 * MS for number, it in enumerate(sent) if it.resent == 1]

    assert all(it.at_ns is not None for it in sent)
    assert set(once) == {30 * MS}  # the gap shows, the receiver requests the packet, the sender resends it


def test_lost_packet_is_missed_behind_the_queue():
    """A lost packet is noticed only after the queue: the packet that shows the gap also waits for the rate limit."""
    uplink = Uplink(NetworkProfile(name="n", rate=1_000_000, delay_s=0.01, loss=0.2, queue_s=10.0), seed=1)
    left_ms = [2_080 * 8e-3 * number for number in range(1, 201)]  # each unit of two packets takes 16.64 ms

    sent = [uplink.send(2_000, 0) for _ in left_ms]

    behind = [it.at_ns / MS - left for it, left in zip(sent, left_ms, strict=True) if it.resent == 1]
    assert len(behind) > 20
    assert min(behind) == pytest.approx(30)


def test_lost_packet_loses_unit_without_retransmission():
    """Without retransmission, the loss of any packet loses its unit."""
    uplink = Uplink(NetworkProfile(name="n", loss=0.1, retransmits=0), seed=2)
    lost = [uplink.send(6_000, number * MS).at_ns is None for number in range(20_000)]

    assert np.mean(lost) == pytest.approx(1 - 0.9**5, rel=0.05)


def test_units_arrive_in_order():
    uplink = Uplink(NetworkProfile(name="n", delay_s=0.01, jitter_s=0.02, loss=0.2), seed=3)
    came = [it.at_ns for it in (uplink.send(2_000, number * MS) for number in range(2_000)) if it.at_ns is not None]

    assert came == sorted(came)


@pytest.mark.parametrize(
    "network", [{"loss": 5e-324}, {"delay_s": 1e300}, {"jitter_s": 1e300}, {"queue_s": 1e300}, {"rate": 10**15}]
)
def test_network_values_may_be_huge(network):
    """Huge values of a network are limited: a unit arrives within 10^18 ns, which is 31 years."""
    arrival = Uplink(NetworkProfile(name="n", **network), seed=1).send(100_000, 0)

    assert arrival.lost == 0
    assert 0 <= arrival.at_ns <= 10**18
