"""`Stack.statistics` contains the statistics of the services inside routers, replicas and similar parts."""

import json

import streaminfer as si
from streaminfer.resilience.breaker.statistics import BreakerStatistics
from streaminfer.stack import PartStatistics
from streaminfer.testing import ScriptedBackend, run


class Counting:
    """User's service with statistics."""

    def __init__(self, count):
        self.count = count

    async def call(self, request):
        return si.Response(request.inputs)

    def statistics(self):
        return self.count


def batched():
    return si.Stack(si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend())


def statistics_after_a_request(*layers):
    async def main(loop):
        async with si.Stack(*layers, clock=loop.clock) as stack:
            await stack(1.0)
            return stack.statistics()

    return run(main)


def test_statistics_of_routes():
    router = si.FallbackRouter(si.Route("full", batched()), si.Route("small", Counting(3), quality=0.5))
    statistics = statistics_after_a_request(si.Telemetry("front"), router)
    inside = statistics.children["FallbackRouter"]
    assert inside["full"]["AdaptiveBatcher"].succeeded == 1
    assert inside["small"] == 3
    assert statistics["FallbackRouter"].requests == 1
    assert list(statistics.children) == ["FallbackRouter"]


def test_statistics_of_replicas_canary_shadow_hedge():
    replicas = si.routing.Replicas(si.routing.Replica("east", Counting(1)), si.routing.Replica("west", Counting(2)))
    canary = si.routing.Canary(replicas, Counting(3), share=0.0)
    statistics = statistics_after_a_request(si.routing.Shadow(Counting(4), share=0.0), si.Hedge(to=Counting(5)), canary)
    assert statistics.children["Shadow"] == {"shadow": 4}
    assert statistics.children["Hedge"] == {"hedge": 5}
    sides = statistics.children["Canary"]
    assert sides["canary"] == 3
    assert sides["stable"].children == {"east": 1, "west": 2}


def test_statistics_of_wrapped_services_have_the_layer():
    guarded = si.CircuitBreaker().wrap(Counting(7))
    statistics = statistics_after_a_request(si.FallbackRouter(si.Route("only", guarded)))
    inside = statistics.children["FallbackRouter"]["only"]
    assert isinstance(inside, PartStatistics)
    assert isinstance(inside.children["layer"], BreakerStatistics)
    assert inside.children["inner"] == 7


def test_statistics_tree_as_dict_and_html():
    statistics = statistics_after_a_request(si.FallbackRouter(si.Route("a<b", batched())))
    plain = json.loads(json.dumps(statistics.to_dict()))
    assert plain["children"]["FallbackRouter"]["a<b"]["layers"]["AdaptiveBatcher"]["succeeded"] == 1
    page = statistics._repr_html_()
    assert "<summary>a&lt;b</summary>" in page
    assert "AdaptiveBatcher" in page
