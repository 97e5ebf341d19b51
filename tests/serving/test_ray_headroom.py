"""Ranking of replicas, as a state machine and in a simulated fleet."""

import attrs
import pytest
from _lib.ray_fleet import Fleet, simulate
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.serving.ray.headroom import SILENT_NS, HeadroomRanking, LoadReport


def ranking_of(**reports):
    ranking = HeadroomRanking(sample=len(reports), seed=1)
    ranking.update({replica: LoadReport(1, *report) for replica, report in reports.items()}, 0)
    return ranking


def test_predicted_finish_ranks_unequal_replicas():
    """A replica that is four times slower is better once the fast one has four times as many requests."""
    ranking = ranking_of(fast=(0.01, 0.01, 0), slow=(0.04, 0.04, 0))
    chosen = []
    for _ in range(10):
        best = ranking.rank()[0]
        chosen.append(best)
        ranking.send(best)
    assert chosen.count("slow") == 2
    assert chosen[:3] == ["fast", "fast", "fast"]


def test_a_report_counts_the_requests_of_other_routers():
    ranking = ranking_of(a=(0.01, 0.01, 0), b=(0.01, 0.01, 0))
    ranking.send("a")
    ranking.update({"a": LoadReport(2, 0.01, 0.01, 3), "b": None}, 1)
    assert ranking.predicted_s("a") == pytest.approx(0.04)
    ranking.complete("a")
    assert ranking.loads["a"].others == 2
    ranking.observe("a", 0)
    assert ranking.predicted_s("a") == pytest.approx(0.01)


def test_replica_without_report_ranks_as_average():
    """A replica without a report is ranked with the mean of the others."""
    ranking = ranking_of(a=(0.01, 0.01, 0), b=(0.03, 0.03, 0))
    ranking.update({"a": None, "b": None, "new": None}, 1)
    assert ranking.predicted_s("new") == pytest.approx(0.02)


def test_replica_without_response_ranks_as_average():
    """A replica that has not responded is ranked with the mean of the others.

    It reports that a request takes no time, and would get all requests.
    """
    ranking = ranking_of(old=(0.01, 0.01, 0), new=(0.0, 0.0, 2))
    assert ranking.predicted_s("new") == pytest.approx(0.03)


def test_a_replica_that_fails_at_once_is_not_the_best():
    """A replica that fails 90 % of its requests has no queue, but gets none until the other has ten times as many."""
    ranking = ranking_of(sound=(0.01, 0.01, 0), broken=(0.01, 0.01, 0, 0.1))
    sent = []
    for _ in range(10):
        sent.append(ranking.rank()[0])
        ranking.send(sent[-1])
    assert sent.count("broken") <= 1
    assert sent[:9] == ["sound"] * 9

    ranking.update({"broken": LoadReport(2, 0.01, 0.01, 0, 0.0), "sound": LoadReport(2, 0.01, 0.01, 40, 1.0)}, 1)
    assert ranking.rank()[0] == "sound"
    ranking.update({"broken": LoadReport(3, 0.01, 0.01, 0, 0.0), "sound": LoadReport(3, 0.01, 0.01, 120, 1.0)}, 2)
    assert ranking.rank()[0] == "broken"


def test_silent_replica_gets_nothing_until_it_reports():
    """A replica whose report does not change is silent and gets no requests, unless all replicas are silent."""
    ranking, report = ranking_of(a=(0.01, 0.01, 0), b=(0.01, 0.01, 0)), LoadReport(2, 0.01, 0.01, 0)
    old = LoadReport(1, 0.01, 0.01, 0)
    ranking.update({"a": old, "b": old}, 5 * SILENT_NS)
    assert set(ranking.rank()) == {"a", "b"}

    ranking.update({"a": report, "b": old}, 5 * SILENT_NS + 1)
    assert ranking.rank() == ["a"]
    assert ranking.home("s") == "a"
    ranking.update({"a": report, "b": report}, 5 * SILENT_NS + 2)
    assert set(ranking.rank()) == {"a", "b"}

    ranking.remove("a")
    ranking.update({"a": report, "b": report._replace(number=3)}, 5 * SILENT_NS + 3)
    assert ranking.rank() == ["b"]


def test_only_the_streams_of_a_lost_replica_move():
    ranking = HeadroomRanking()
    ranking.update(dict.fromkeys("abc"), 0)
    names = [f"s{number}" for number in range(300)]
    homes = {name: ranking.home(name) for name in names}
    assert min(sum(home == one for home in homes.values()) for one in "abc") > 60

    ranking.update(dict.fromkeys("ac"), 1)
    assert all(ranking.home(name) == homes[name] for name in names if homes[name] != "b")
    assert {ranking.home(name) for name in names if homes[name] == "b"} == {"a", "c"}
    ranking.update({}, 2)
    assert ranking.home("s1") is None
    assert ranking.rank() == []


def test_any_text_names_a_stream():
    """Even a lone surrogate names a stream, because Ray lets requests wait forever if its router raises an error."""
    ranking = HeadroomRanking()
    ranking.update(dict.fromkeys("abc"), 0)
    assert ranking.home("\ud800") in "abc"


@given(st.lists(st.tuples(st.sampled_from("sodqr"), st.sampled_from("abcx"), st.integers(0, 5))))
def test_own_requests_are_those_sent_and_not_completed(calls):
    """After any sequence of calls, the counts equal those of a simple model, and only known replicas are ranked."""
    ranking, own = HeadroomRanking(seed=0), dict.fromkeys("abc", 0)
    ranking.update(dict.fromkeys("abc"), 0)
    for now_ns, (what, replica, number) in enumerate(calls):
        if what == "s":
            ranking.send(replica)
            own |= {replica: own[replica] + 1} if replica in own else {}
        elif what == "o":
            ranking.complete(replica)
            own |= {replica: max(own[replica] - 1, 0)} if replica in own else {}
        elif what == "d":
            ranking.remove(replica)
        elif what == "q":
            ranking.observe(replica, number)
        else:
            present = "abc"[: number % 4]
            reports = {name: LoadReport(now_ns, number / 10, number / 100, number) for name in present}
            ranking.update(reports, now_ns * SILENT_NS // 2)
            own = {name: own.get(name, 0) for name in present}
            assert set(ranking.rank()) == set(present)
        assert {name: load.own for name, load in ranking.loads.items()} == own
        assert set(ranking.rank()) <= set(own)


UNEQUAL = Fleet(slowness=[1.0, 4.0], seconds=10.0)


@pytest.mark.parametrize("fleet", [UNEQUAL, attrs.evolve(UNEQUAL, slowness=[1.0] * 10 + [4.0] * 10, routers=4)])
def test_headroom_beats_queue_length_if_unequal(fleet):
    """Requests to unequal replicas are on time more often than if they are sent by queue length.

    The load is 0.8 of the joint capacity, in virtual time.
    """
    ours, by_length = (simulate(fleet, choice).on_time for choice in ("headroom", "queue length"))
    assert ours > by_length + 0.05
    assert ours > 0.97


def test_killed_replica_costs_few_other_requests():
    """A killed replica costs little more than its own requests."""
    fleet = Fleet(slowness=[1.0] * 20, routers=4, load=0.6, seconds=4.0, killed=1)
    result = simulate(fleet, "headroom")
    assert 0.0 < result.lost < 0.02
    assert result.on_time > 0.97
