"""The ranking of replicas, as a state machine and in a simulated fleet."""

import attrs
import pytest
from _lib.ray_fleet import Fleet, simulate
from hypothesis import given
from hypothesis import strategies as st

from streaminfer.serving.ray.headroom import HeadroomRanking


def ranking_of(**reports):
    ranking = HeadroomRanking(sample=len(reports), seed=1)
    ranking.replace(list(reports))
    for replica, report in reports.items():
        ranking.report(replica, *report)
    return ranking


def test_predicted_finish_ranks_unequal_replicas():
    """A replica that is four times slower is better once the fast one has four times as many requests."""
    ranking = ranking_of(fast=(0.01, 0.01, 0), slow=(0.04, 0.04, 0))
    chosen = []
    for _ in range(10):
        best = ranking.rank(["fast", "slow"])[0]
        chosen.append(best)
        ranking.send(best)
    assert chosen.count("slow") == 2
    assert chosen[:3] == ["fast", "fast", "fast"]


def test_a_report_counts_the_requests_of_other_routers():
    ranking = ranking_of(a=(0.01, 0.01, 0), b=(0.01, 0.01, 0))
    ranking.send("a")
    ranking.report("a", 0.01, 0.01, 3)
    assert ranking.predicted_s("a") == pytest.approx(0.04)
    ranking.complete("a")
    assert ranking.loads["a"].others == 2
    ranking.observe("a", 0)
    assert ranking.predicted_s("a") == pytest.approx(0.01)


def test_a_replica_without_report_is_taken_for_a_mean_one():
    ranking = ranking_of(a=(0.01, 0.01, 0), b=(0.03, 0.03, 0))
    ranking.replace(["a", "b", "new"])
    assert ranking.predicted_s("new") == pytest.approx(0.02)


def test_only_the_streams_of_a_lost_replica_move():
    ranking = HeadroomRanking()
    ranking.replace(["a", "b", "c"])
    names = [f"s{number}" for number in range(300)]
    homes = {name: ranking.home(name) for name in names}
    assert min(sum(home == one for home in homes.values()) for one in "abc") > 60

    ranking.replace(["a", "c"])
    assert all(ranking.home(name) == homes[name] for name in names if homes[name] != "b")
    assert {ranking.home(name) for name in names if homes[name] == "b"} == {"a", "c"}
    ranking.replace([])
    assert ranking.home("s1") is None
    assert ranking.rank(["a"]) == []


@given(st.lists(st.tuples(st.sampled_from("soqrp"), st.sampled_from("abcx"), st.integers(0, 5))))
def test_own_requests_are_those_sent_and_not_completed(calls):
    """Whatever happens, counts are those of a plain model, and no prediction is negative."""
    ranking, own, present = HeadroomRanking(seed=0), dict.fromkeys("abc", 0), set("abc")
    ranking.replace("abc")
    for what, replica, number in calls:
        if what == "s":
            ranking.send(replica)
            own[replica] = own.get(replica, 0) + 1
        elif what == "o":
            ranking.complete(replica)
            own[replica] = max(own.get(replica, 0) - 1, 0)
        elif what == "q":
            ranking.observe(replica, number)
        elif what == "r":
            ranking.report(replica, number / 10, number / 100, number)
        else:
            present = set("abc"[: max(number % 4, 1)])
            ranking.replace(present)
        own = {name: own.get(name, 0) for name in present}
        assert {name: load.own for name, load in ranking.loads.items()} == own
        assert all(ranking.predicted_s(name) >= 0 for name in present)
        assert set(ranking.rank("abcx")) <= present


UNEQUAL = Fleet(slowness=[1.0, 4.0], seconds=10.0)


@pytest.mark.parametrize("fleet", [UNEQUAL, attrs.evolve(UNEQUAL, slowness=[1.0] * 10 + [4.0] * 10, routers=4)])
def test_unequal_replicas_are_on_time_more_often_than_by_queue_length(fleet):
    """At 0.8 of joint capacity, in virtual time."""
    ours, by_length = (simulate(fleet, choice).on_time for choice in ("headroom", "queue length"))
    assert ours > by_length + 0.05
    assert ours > 0.97


def test_a_killed_replica_costs_little_more_than_its_own_requests():
    fleet = Fleet(slowness=[1.0] * 20, routers=4, load=0.6, seconds=4.0, killed=1, notice_s=0.1)
    result = simulate(fleet, "headroom")
    assert 0.0 < result.lost < 0.01
    assert result.on_time > 0.97
