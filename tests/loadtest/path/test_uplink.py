"""Units over a link: packets, retransmission, loss."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from streaminfer.loadtest.path import NetworkProfile, Uplink, network_names, network_profile
from streaminfer.loadtest.path.uplink import HEADER_BYTES, PACKET_BYTES

MS = 1_000_000

networks = st.builds(
    NetworkProfile,
    name=st.just("n"),
    rate=st.integers(10_000, 10**9),
    delay_s=st.floats(0.0, 0.2),
    loss=st.floats(0.0, 0.5),
    loss_run=st.floats(1.0, 8.0),
    queue_s=st.floats(0.0, 1.0),
    retransmits=st.integers(0, 3),
)
loads = st.tuples(st.floats(0.1, 40.0), st.sampled_from([0.02, 0.1, 1.0]), st.integers(0, 5))
"""Offered load as a multiple of the rate, seconds between units, and seed."""


def offer(profile, load, units=60):
    """Send equal units at equal intervals; return their size, and send time and arrival of each."""
    times_rate, interval_s, seed = load
    size = min(round(times_rate * profile.rate / 8 * interval_s), 200_000)
    uplink = Uplink(profile, seed)
    sent_ns = [round(number * interval_s * 1e9) for number in range(units)]
    return size, [(now_ns, uplink.send(size, now_ns)) for now_ns in sent_ns]


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

    sent = [uplink.send(2_000, 0) for _ in range(200)]

    packets = np.cumsum([it.packets + it.resent for it in sent]) - [it.resent for it in sent]
    left_ms = packets * 1_040 * 8e-3  # a packet takes 8.32 ms
    behind = [it.at_ns / MS - left for it, left in zip(sent, left_ms, strict=True) if it.resent == 1]
    assert len(behind) > 20
    assert min(behind) == pytest.approx(30)


@pytest.mark.parametrize("retransmits", [0, 2])
def test_retransmissions_do_not_shorten_losses(retransmits):
    """Packets are lost in the share and the runs of the profile when first sent, whether they are sent again or not."""
    profile = NetworkProfile(name="n", delay_s=0.01, loss=0.05, loss_run=5.0, retransmits=retransmits)
    uplink = Uplink(profile, seed=1)

    lost = np.array([uplink.send(1_000, number * 100 * MS).lost for number in range(100_000)])

    runs = np.count_nonzero(np.diff(lost) == 1)
    assert lost.mean() == pytest.approx(0.05, rel=0.1)
    assert lost.sum() / runs == pytest.approx(5.0, rel=0.1)


def test_packet_dropped_by_queue_loses_unit():
    """A packet that the full queue dropped is not sent again, and the next unit goes through the drained queue."""
    uplink = Uplink(NetworkProfile(name="n", rate=1_000_000, delay_s=0.01, queue_s=0.02))

    first, second = uplink.send(6_000, 0), uplink.send(1_000, 100 * MS)

    assert (first.at_ns, first.packets, first.lost, first.resent) == (None, 5, 2, 0)
    assert second.at_ns == 110 * MS + 1_040 * 8_000


def test_retransmission_takes_its_share_of_the_rate():
    """A unit waits until the retransmissions of the unit before it have left the queue."""
    uplink = Uplink(NetworkProfile(name="n", rate=1_000_000, delay_s=0.01, loss=0.2, queue_s=10.0), seed=14)

    before = uplink.send(1_160, 0)
    uplink.send(1_160, 0)

    assert before.resent == 1
    assert uplink.due_ns(0) == 10 * MS + 3 * 1_200 * 8_000


def test_unit_is_due_before_its_retransmissions():
    uplink = Uplink(NetworkProfile(name="n", rate=1_000_000, delay_s=0.01, loss=0.2, queue_s=10.0), seed=14)

    assert uplink.send(1_160, 0).resent == 1
    assert uplink.due_ns(0) == 10 * MS + 1_200 * 8_000


def test_full_queue_drops_a_retransmission():
    """If the queue holds no more than the unit itself, a lost packet of it cannot be sent again."""
    network = NetworkProfile(name="n", rate=1_000_000, loss=0.2, queue_s=0.01)
    sent = [Uplink(network, seed).send(2_320, 0) for seed in range(100)]

    assert {(it.at_ns is None, it.resent) for it in sent} == {(it.lost > 0, 0) for it in sent}
    assert {it.lost for it in sent} == {0, 1, 2}


@given(networks, loads)
def test_uplink_never_exceeds_its_rate(profile, load):
    """The link had the time to carry each complete unit, its retransmissions, and all complete units before it."""
    size, sent = offer(profile, load)
    carried_ns = 0.0

    for _, arrival in sent:
        if arrival.at_ns is not None:
            packets = arrival.packets
            carried_ns += (size + packets * HEADER_BYTES) * (1 + arrival.resent / packets) * 8e9 / profile.rate
            assert carried_ns <= arrival.at_ns + len(sent)


@given(networks, loads)
def test_uplink_delay_is_bounded(profile, load):
    """A unit takes the queue, one packet, one delay, and three delays per retransmission of a packet, at most."""
    _, sent = offer(profile, load)
    packet_s = (PACKET_BYTES + HEADER_BYTES) * 8 / profile.rate
    longest_s = profile.queue_s + packet_s + (1 + 3 * profile.retransmits) * profile.delay_s

    assert all((it.at_ns - now_ns) / 1e9 <= longest_s + 1e-6 for now_ns, it in sent if it.at_ns is not None)


@pytest.mark.parametrize("name", network_names())
def test_profile_of_the_library_can_be_overloaded(name):
    """At three times the rate of the profile, the network loses most units, and delivers at most the rate."""
    profile = network_profile(name)

    size, sent = offer(profile, (3.0, 0.01, 1), units=1_000)

    complete = sum(it.at_ns is not None for _, it in sent)
    assert size * 8 * complete <= profile.rate * (10.0 + profile.queue_s)
    assert complete < len(sent) / 2


@pytest.mark.parametrize(
    "network", [{"loss": 5e-324}, {"delay_s": 1e300}, {"jitter_s": 1e300}, {"queue_s": 1e300}, {"rate": 10**15}]
)
def test_network_values_may_be_huge(network):
    """Huge values of a network are limited: a unit arrives within 10^18 ns, which is 31 years."""
    arrival = Uplink(NetworkProfile(name="n", **network), seed=1).send(100_000, 0)

    assert arrival.lost == 0
    assert 0 <= arrival.at_ns <= 10**18
