"""Routers give access to the states of streams in their services."""

import pytest

import streaminfer as si
from streaminfer.protocols import adapt
from streaminfer.streams import StreamSession
from streaminfer.testing import ScriptedBackend


class Keeper(ScriptedBackend):
    """Backend with the states of some streams in a dictionary."""

    def __init__(self, model, **states):
        super().__init__()
        self.model, self.states, self.calls = model, dict(states), []
        self.stream_states = self

    def reset_stream(self, stream_id):
        self.calls.append(("reset", stream_id))

    def end_stream(self, stream_id):
        self.calls.append(("end", stream_id))

    def export_state(self, stream_id):
        if stream_id not in self.states:
            raise si.InvalidInput("no such stream")
        return self.model, self.states[stream_id]

    def import_state(self, stream_id, state):
        if state[0] != self.model:
            raise si.InvalidInput("of another model")
        self.states[stream_id] = state[1]


def stack_of(model):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=2), model)


ROUTERS = {
    "router": lambda *services: si.FallbackRouter(*(si.Route(str(at), one) for at, one in enumerate(services))),
    "replicas": lambda *services: si.Replicas(*(si.Replica(str(at), one) for at, one in enumerate(services))),
    "canary": lambda *services: si.routing.Canary(*services, share=0.5),
}


@pytest.mark.parametrize("kind", ROUTERS)
def test_router_passes_stream_calls_to_each_service(kind):
    """Resets and ends reach each service, an export the service with the state, an import those of its model.

    The exception is an import into replicas, which reaches the replica that gets the next request of the stream.
    """
    one, other = Keeper("m", a=1), Keeper("m", b=2)
    states = adapt(ROUTERS[kind](stack_of(one), stack_of(other))).capabilities().stream_states

    states.reset_stream("a")
    states.end_stream("b")
    assert one.calls == other.calls == [("reset", "a"), ("end", "b")]
    assert states.export_state("b") == ("m", 2)
    states.import_state("c", ("m", 3))
    imported = [keeper.states["c"] for keeper in (one, other) if "c" in keeper.states]
    assert imported == ([3] if kind == "replicas" else [3, 3])
    with pytest.raises(si.InvalidInput, match="no such stream"):
        states.export_state("z")
    with pytest.raises(si.InvalidInput, match="of another model"):
        states.import_state("z", ("n", 3))


@pytest.mark.parametrize("kind", ROUTERS)
def test_services_without_state_offer_none(kind):
    router = ROUTERS[kind](stack_of(ScriptedBackend()), stack_of(ScriptedBackend()))
    assert adapt(router).capabilities().stream_states is None


async def test_a_session_ends_its_streams_at_every_replica(loop):
    keepers = [Keeper("m"), Keeper("m")]
    replicas = ROUTERS["replicas"](*(stack_of(keeper) for keeper in keepers))
    async with si.Stack(replicas, clock=loop.clock) as service:
        results = [result async for result in StreamSession(service, stream_id="s")([1.0, 2.0])]
    assert [result.error for result in results] == [None, None]
    assert [keeper.calls for keeper in keepers] == [[("end", "s")]] * 2


@pytest.mark.parametrize("kind", ROUTERS)
def test_router_reads_each_service_once(kind):
    """A router reads the capabilities of each service once, so the time does not multiply in nested routers."""
    asked = []

    class Asked(si.Stack):
        def capabilities(self):
            asked.append(self)
            return super().capabilities()

    services = Asked(ScriptedBackend()), Asked(ScriptedBackend())
    router = adapt(ROUTERS[kind](*services))
    asked.clear()

    router.capabilities()

    assert asked == list(services)
