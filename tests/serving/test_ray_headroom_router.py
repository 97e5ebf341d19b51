"""Request router of Ray Serve, whose base class is replaced by a fake that only stores the replicas."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from streaminfer.serving.ray.headroom_router import make_headroom_router
from streaminfer.testing import run


class RequestRouter:
    """Fake of Ray's base class, as far as our router calls it."""

    def update_replicas(self, replicas):
        self.curr_replicas = {one.replica_id: one for one in replicas}

    def on_send_request(self, replica_id):
        """Do nothing: Ray's own count is not tested."""


def replica(name, number, per_request_s):
    stats = {"number": number, "service_s": 0.01, "per_request_s": per_request_s, "in_flight": 0}
    return SimpleNamespace(replica_id=name, routing_stats=stats)


@pytest.fixture
def router(monkeypatch):
    """Return a router with two equal replicas."""
    modules = {name: ModuleType(name) for name in ("ray", "ray.serve", "ray.serve.request_router")}
    modules["ray.serve.request_router"].RequestRouter = RequestRouter
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    made = make_headroom_router()()
    made.initialize_state()
    made.update_replicas([replica("a", 1, 0.01), replica("b", 1, 0.01)])
    return made


def choose(router, count, stream_id=None):
    """Return the first choices for the requests of a burst, none of which is sent in between."""
    pending = SimpleNamespace(metadata=SimpleNamespace(session_id=""), kwargs={"stream_id": stream_id})

    async def main(_loop):
        ranks = [await router.choose_replicas([], pending) for _ in range(count)]
        return [first[0].replica_id for first, *_ in ranks]

    return run(main)


def test_a_burst_is_spread_over_the_replicas(router):
    """A burst is spread evenly, although Ray chooses for all its requests before it sends the first."""
    chosen = choose(router, 20)
    assert chosen.count("a") == 10

    for name in chosen:
        router.on_send_request(name)
    assert [router._ranking.loads[name].in_flight for name in "ab"] == [10, 10]


def test_a_burst_of_a_stream_counts_for_its_replica(router):
    (home,) = set(choose(router, 5, "s"))

    assert home not in choose(router, 5)


def test_unsent_choice_is_forgotten_with_next_report(router):
    """A choice that is not sent is forgotten with the next report."""
    choose(router, 4)
    router.update_replicas([replica("a", 2, 0.01), replica("b", 2, 0.01)])

    assert [router._ranking.loads[name].in_flight for name in "ab"] == [0, 0]
