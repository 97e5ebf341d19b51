"""Members of a set of replicas, without the set: names, slots, zones, and replicas that are leaving."""

import pytest

from streaminfer.request import Response
from streaminfer.routing.replicas._ejection_cy import OutlierEjection
from streaminfer.routing.replicas._p2c_cy import SUCCESS, P2CBalancer
from streaminfer.routing.replicas.membership import Membership
from streaminfer.routing.replicas.replica import Replica

pytestmark = pytest.mark.uncompiled

S = 10**9


class Versioned:
    """Service whose model has changed a given number of times."""

    def __init__(self, changes=0):
        self.changes = changes

    async def call(self, request):
        return Response(request.inputs)

    def fingerprint_changes(self):
        return self.changes


@pytest.fixture
def balancer():
    return P2CBalancer(2, 10 * S, OutlierEjection(5, 3.0, S, 30 * S, 0.5, 0), 0, 1)


@pytest.fixture
def members(balancer):
    return Membership(balancer, lambda: 0, "home", {"far": 6.0})


def put(members, name, service=None, *, zone="home"):
    handle = members.handle_of(Replica(name, service or Versioned(), zone=zone))
    members.put(handle, slowly=False)
    return handle


def test_name_is_free_once_its_replica_is_removed(members):
    """A new replica can have the name of a replica that is leaving."""
    put(members, "a")
    put(members, "b")
    with pytest.raises(ValueError, match="'a' is the name of another replica"):
        members.check_new(Replica("a", Versioned()))

    members.take_out("a")

    members.check_new(Replica("a", Versioned()))


def test_leaving_replicas_of_one_name_are_told_apart(members):
    """Leaving replicas of one name have different keys, so that statistics, audits and proofs find each of them."""
    put(members, "b")
    leaving = [Versioned(number) for number in range(3)]
    for service in leaving:
        put(members, "a", service)
        members.take_out("a")
    put(members, "a")
    services = members.services()
    assert len(services) == 5
    assert all(service in services.values() for service in leaving)


def test_a_leaving_replica_keeps_its_slot(members, balancer):
    """The slot of a removed replica is used again only after its last request has ended."""
    first = put(members, "a")
    token = balancer.choose(-1, 0)
    put(members, "b")
    assert members.take_out("a") is first

    put(members, "c")
    assert {slot: handle.replica.name for slot, handle in members.by_slot.items()} == {0: "a", 1: "b", 2: "c"}
    assert list(members.services()) == ["b", "c", "a (leaving)"]

    balancer.done(token, SUCCESS, 1, 1)
    first.check_drained()
    assert first not in members.by_slot.values()
    put(members, "d")
    assert {slot: handle.replica.name for slot, handle in members.by_slot.items()} == {0: "d", 1: "b", 2: "c"}
    assert [handle.replica.name for handle in members.all()] == ["b", "c", "d"]


def test_the_last_replica_stays(members):
    """Neither the last replica nor an unknown one can be taken out."""
    put(members, "a")

    with pytest.raises(ValueError, match="'a' is the last replica: stop all of them instead"):
        members.take_out("a")
    with pytest.raises(ValueError, match="name: expected one of 'a', got 'b'"):
        members.take_out("b")

    assert members.first() is members.by_name["a"]


def test_changes_of_removed_replicas_still_count(members):
    """The number of changes includes removed replicas, so it never falls, and outer caches notice each change."""
    leaving, staying = Versioned(3), Versioned(4)
    put(members, "a", leaving)
    put(members, "b", staying)
    assert members.fingerprint_changes() == 7

    members.take_out("a")
    staying.changes += 1

    assert members.fingerprint_changes() == 8


def test_another_zone_has_its_penalty(members, balancer):
    """A replica of the home zone is preferred, then one with the default penalty, then one with a larger penalty."""
    for zone in ("home", "near", "far"):
        put(members, zone, zone=zone)

    chosen = []
    for _ in range(90):
        slot = balancer.choose(-1, 0) & 0xFFFF
        chosen.append(members.by_slot[slot].replica.name)

    assert chosen.count("home") > chosen.count("near") > chosen.count("far") > 0
