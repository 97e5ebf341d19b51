"""Links behave like their profiles, by seed."""

import numpy as np
import pytest

from streaminfer.loadtest.path import DelayTrace, Link, NetworkProfile, network_names, network_profile

MS = 1_000_000


def arrivals(profile, count=20_000, *, size=1_200, every_ns=10 * MS, seed=1):
    link = Link(profile, seed)
    return [link.send(size, number * every_ns) for number in range(count)]


@pytest.mark.parametrize("name", network_names())
def test_profile_of_the_library_has_its_name(name):
    assert network_profile(name).name == name


def test_delay_and_jitter_match_the_profile():
    profile = NetworkProfile(name="n", delay_s=0.03, jitter_s=0.002)
    delays = np.array(arrivals(profile)) / 1e9 - np.arange(20_000) * 0.01

    assert delays.min() >= 0.03
    assert delays.std() == pytest.approx(0.002, rel=0.05)


def test_seed_can_be_a_number_of_numpy():
    """A seed of NumPy gives the same arrivals as the same number of Python."""
    profile = NetworkProfile(name="n", jitter_s=0.002)

    assert arrivals(profile, 10, seed=np.int64(1)) == arrivals(profile, 10, seed=1)


def test_rate_limit_spreads_a_burst():
    link = Link(NetworkProfile(name="n", rate=1_000_000, queue_s=1.0))

    assert [link.send(1_250, 0) for _ in range(3)] == [10 * MS, 20 * MS, 30 * MS]


def test_full_queue_drops():
    link = Link(NetworkProfile(name="n", rate=1_000_000, queue_s=0.02))
    sent = [link.send(1_250, 0) for _ in range(5)]

    assert sent == [10 * MS, 20 * MS, 30 * MS, None, None]
    assert link.send(1_250, 30 * MS) == 40 * MS


def test_reserved_packet_delays_later_packets():
    link = Link(NetworkProfile(name="n", rate=1_000_000, queue_s=0.02))

    assert [link.reserve(1_250, 0), link.send(1_250, 0)] == [10 * MS, 20 * MS]
    assert [link.reserve(1_250, 0), link.reserve(1_250, 0)] == [30 * MS, None]


def test_reserved_packet_of_an_unlimited_link():
    assert Link(NetworkProfile(name="n", delay_s=0.01)).reserve(1_250, 7 * MS) == 7 * MS


def test_packets_keep_their_order():
    came = [it for it in arrivals(NetworkProfile(name="n", jitter_s=0.05, loss=0.1)) if it is not None]

    assert came == sorted(came)


def test_loss_matches_the_profile():
    lost = [it is None for it in arrivals(NetworkProfile(name="n", loss=0.05, loss_run=3.0), 200_000)]

    assert np.mean(lost) == pytest.approx(0.05, rel=0.05)


def test_link_repeats_by_seed():
    profile = network_profile("wifi-busy")

    assert arrivals(profile, 500) == arrivals(profile, 500)
    assert arrivals(profile, 500) != arrivals(profile, 500, seed=2)


def test_trace_replays_an_outage():
    """Messages of an outage arrive together at its end, as they did in the recording."""
    trace = DelayTrace.from_round_trips([100, 200, 300, 400, 500], [20, np.nan, 600, 400, 20])
    link = Link(NetworkProfile(name="car", trace=trace))

    assert [link.send(100, at * 100 * MS) for at in range(4)] == [10 * MS, 110 * MS, 500 * MS, 500 * MS]


@pytest.mark.parametrize(("sent_ms", "rtt_ms"), [([0, 55], [20]), ([[0, 1]], [[2, 3]]), (0, 20)])
def test_round_trips_have_an_instant_each(sent_ms, rtt_ms):
    with pytest.raises(ValueError, match="rtt_ms: expected one number for each of sent_ms"):
        DelayTrace.from_round_trips(sent_ms, rtt_ms)


def test_trace_repeats_behind_its_end():
    """A trace repeats after its end; its last delay lasts as long as the mean of the others."""
    trace = DelayTrace([0.0, 1.0, 2.0], [0.01, 0.02, 0.03])

    assert [trace.delay_ns(at * 500 * MS) // MS for at in (0, 2, 3, 4, 6, 9)] == [10, 20, 20, 30, 10, 20]


@pytest.mark.parametrize("first_s", [0.0, 0.1, 4.0, 1e6])
def test_trace_repeats_from_its_first_message(first_s):
    """The period of a trace does not depend on its first send time; earlier packets have its first delay."""
    sent_s = np.array([0.0, 0.5, 1.0]) + first_s
    trace = DelayTrace(sent_s, [0.09, 0.01, 0.02])
    sent_s[:] = 9.0  # the trace has its own
    start_ns = round(first_s * 1e9)

    assert [trace.delay_ns(start_ns + (at * 500 + 1) * MS) // MS for at in range(9)] == [90, 10, 20] * 3
    assert trace.delay_ns(start_ns // 2) == 90 * MS


@pytest.mark.parametrize(
    ("sent_s", "delay_s"), [([], []), ([0.0, 1.0], [0.1]), ([1.0, 0.0], [0.1, 0.1]), ([0.0], [-1.0])]
)
def test_wrong_trace_is_rejected(sent_s, delay_s):
    with pytest.raises(ValueError, match="_s: expected"):
        DelayTrace(sent_s, delay_s)


def test_trace_of_a_file_is_one_of_its_runs(tmp_path):
    """A link replays the chosen run, here the second drive with its outage; each way takes half of a round trip."""
    drives = {"send_ms": [0, 50, 0, 50, 100], "rtt_ms": [20, 20, 20, 900, 850], "offsets": [0, 2, 5]}
    np.savez(tmp_path / "drives.npz", **{name: np.array(values) for name, values in drives.items()})
    (tmp_path / "car.toml").write_text('name = "car"\n[trace]\npath = "drives.npz"\nrun = 1\n')

    link = Link(network_profile(tmp_path / "car.toml"))

    assert [link.send(100, at_ms * 1_000_000) for at_ms in (0, 50)] == [10_000_000, 500_000_000]


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        ('path = "drives.npz"\nrun = 1', "run: expected"),
        ('path = "drives.npz"\nrtt = "rtt_s"', "trace.key: expected one of 'send_ms', 'rtt_ms', got 'rtt_s'"),
        ('path = "drives.npz"\nspeed = 2', "trace: expected keys among path, run"),
        ("run = 1", "trace: expected a table with a path"),
    ],
    ids=["run", "name", "key", "path"],
)
def test_wrong_trace_of_a_file_is_explained(tmp_path, trace, said):
    np.savez(tmp_path / "drives.npz", send_ms=np.array([0, 50]), rtt_ms=np.array([20, 20]))
    (tmp_path / "car.toml").write_text(f'name = "car"\n[trace]\n{trace}\n')

    with pytest.raises((ValueError, TypeError), match=said):
        network_profile(tmp_path / "car.toml")


def test_profile_comes_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nrate = 1000000\nloss = 0.5\n')

    assert network_profile(path) == NetworkProfile(name="mine", rate=1_000_000, loss=0.5)


@pytest.mark.parametrize(("text", "argument"), [('name = "x"\nlost = 1\n', "lost"), ("rate = 5000\n", "name")])
def test_wrong_file_is_explained(tmp_path, text, argument):
    path = tmp_path / "mine.toml"
    path.write_text(text)

    with pytest.raises(ValueError, match=argument):
        network_profile(path)


def test_empty_packet_of_a_limited_link():
    """An empty packet takes as long as the smallest packet, of one byte."""
    link = Link(NetworkProfile(name="n", rate=1_000_000, delay_s=0.01))

    assert link.send(0, 0) == 10_008_000
    assert link.reserve(0, 0) == 16_000
