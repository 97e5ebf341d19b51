"""How many requests keep several services busy: what a live stream may have in flight behind a router."""

import streaminfer as si
from streaminfer.protocols import adapt
from streaminfer.routing.full_loads import full_load_of_all
from streaminfer.testing import ScriptedBackend


class Remote:
    """A service that says nothing of its load, as replicas and clients of other servers."""

    async def call(self, request):
        return si.Response(request.inputs)


def service(max_batch_size):
    return si.Stack(si.AdaptiveBatcher(max_batch_size=max_batch_size), ScriptedBackend())


def test_the_loads_of_services_add_up():
    """A batcher has one full batch for its worker, and one queued."""
    assert full_load_of_all([]) == 0
    assert full_load_of_all([service(4), service(8)]) == 24


def test_a_service_that_says_nothing_of_its_load_takes_any_number():
    """No sum says how many."""
    assert full_load_of_all([service(4), Remote()]) is None


def test_routes_behind_the_best_one_of_a_router_count():
    """Also those of a router that is a route itself."""
    inner = si.FallbackRouter(si.Route("a", service(1)), si.Route("b", service(2)))
    assert full_load_of_all([inner]) == 6

    outer = si.FallbackRouter(si.Route("best", service(16)), si.Route("inner", inner))
    assert adapt(outer).capabilities().spare_load() == 6
    open_ended = si.FallbackRouter(si.Route("best", service(16)), si.Route("remote", Remote()))
    assert adapt(open_ended).capabilities().spare_load() is None
    assert full_load_of_all([open_ended]) is None
