"""The number of requests that keeps several services busy; streams and `map` have so many in flight at a router."""

import numpy as np
import pytest

import streaminfer as si
from streaminfer._stack.many_calls import default_concurrency
from streaminfer.protocols import adapt
from streaminfer.routing.full_loads import full_load_of_all
from streaminfer.testing import ScriptedBackend, run


class Remote:
    """Service that does not state its load, like a client of another server."""

    async def call(self, request):
        return si.Response(request.inputs)


def service(max_batch_size):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=max_batch_size), ScriptedBackend())


def test_the_loads_of_services_add_up():
    """The full load of a batcher is two full batches: one for its worker and one queued."""
    assert full_load_of_all([]) == 0
    assert full_load_of_all([service(4), service(8)]) == 24


def test_service_of_unknown_load_takes_any_number():
    """If one service does not state its load, the sum is unknown, and any number of requests may be in flight."""
    assert full_load_of_all([service(4), Remote()]) is None


def test_fallback_routes_count_toward_full_load():
    """The load of all routes of a router counts, also of inner routers; its spare load is that of all but the best."""
    inner = si.FallbackRouter(si.Route("a", service(1)), si.Route("b", service(2)))
    assert full_load_of_all([inner]) == 6

    outer = si.FallbackRouter(si.Route("best", service(16)), si.Route("inner", inner))
    assert adapt(outer).capabilities().spare_load() == 6
    open_ended = si.FallbackRouter(si.Route("best", service(16)), si.Route("remote", Remote()))
    assert adapt(open_ended).capabilities().spare_load() is None
    assert full_load_of_all([open_ended]) is None


def spreads(kind, services):
    if kind == "canary":
        return si.routing.Canary(*services[:2], share=0.5)
    replicas = si.Replicas(*(si.Replica(str(number), it) for number, it in enumerate(services)))
    return si.FallbackRouter(si.Route("best", replicas)) if kind == "router" else replicas


@pytest.mark.parametrize(("kind", "load"), [("replicas", 192), ("router", 192), ("canary", 128)])
@pytest.mark.parametrize("method", ["map", "rows"])
def test_map_and_rows_keep_all_services_busy(kind, load, method):
    """By default, `map` and `rows` keep all services busy among which requests are spread."""
    backends = [ScriptedBackend(duration_s=0.01) for _ in range(3)]
    batchers = [si.AdaptiveBatcher(max_batch_size=32, policy="greedy") for _ in backends]

    async def main(loop):
        spread = spreads(kind, [si.Stack(*parts) for parts in zip(batchers, backends, strict=True)])
        async with si.Stack(si.Telemetry("all"), spread, clock=loop.clock) as stack:
            inputs = np.arange(1920.0)
            assert adapt(stack).capabilities().spread_load() == load
            assert np.array_equal(await getattr(stack, method)(inputs), inputs)

    run(main)
    sizes = [size for backend in backends for size in backend.batch_sizes]
    assert sum(sizes) / len(sizes) > 24


def test_replicas_of_unknown_load_count_as_none():
    """A replica that does not state its load adds nothing to the load of the set; `map` sends at least 64 at once."""
    replicas = si.Replicas(si.Replica("known", service(4)), si.Replica("remote", Remote()))
    offered = adapt(replicas).capabilities()

    assert offered.spread_load() == 8
    assert default_concurrency(offered) == 64
