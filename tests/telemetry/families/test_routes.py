"""The route that a response came from, by its source."""

import pickle

import pytest

import streaminfer as si
from streaminfer._runtime.response_source import fallback_source, nested_source
from streaminfer.routing import Replica, Replicas
from streaminfer.telemetry import Outcomes
from streaminfer.telemetry.families.routes import route_of
from streaminfer.testing import ScriptedBackend, run


@pytest.mark.parametrize(
    ("source", "text", "route"),
    [
        ("small", "small", "small"),
        (fallback_source("small", "large", "circuit_open"), "small (large: circuit_open)", "small"),
        (fallback_source("small", "large", ""), "small (large: )", "small"),
        ("small (int8)", "small (int8)", "small (int8)"),
        ("org/small (v1: int8)", "org/small (v1: int8)", "org/small (v1: int8)"),
        (
            fallback_source("small (int8)", "large (fp16)", "infeasible"),
            "small (int8) (large (fp16): infeasible)",
            "small (int8)",
        ),
        (
            nested_source("stable", fallback_source("small", "large", "late")),
            "stable/small (large: late)",
            "stable",
        ),
        (nested_source("http://a:8000", "org/small"), "http://a:8000/org/small", "http://a:8000"),
        (nested_source("a", ""), "a", "a"),
        ("cache", "cache", "cache"),
        ("", "", ""),
    ],
)
def test_route_is_the_outermost_without_a_reason(source, text, route):
    """The route of a source is its outermost name, with slashes and parentheses, without inner sources and reasons.

    This holds for a pickled source too.
    """
    assert source == text
    assert route_of(source) == route
    assert route_of(pickle.loads(pickle.dumps(source))) == route


def named(name):
    """Return a model with that name."""
    model = ScriptedBackend(duration_s=0.010)
    model.name = name
    return model


async def served_by(layer, loop):
    """Serve one request; return its route in the telemetry and in the outcomes, and the routes of the cost meter."""
    telemetry, meter = si.Telemetry(labels=("route",)), si.CostMeter(per_second=1.0)
    outcomes = Outcomes(id_of=lambda request: 1)
    async with si.Stack(telemetry, meter, outcomes, layer, clock=loop.clock) as service:
        await service(1.0)
    outcomes.report(1, "seen")
    (labeled,) = telemetry.statistics().labeled
    (row,) = outcomes.table(settle=True).by("route")
    routes = {name: (it.cost, it.responses) for name, it in meter.statistics().routes.items()}
    return dict(labeled.labels)["route"], row.of["route"], routes


def test_cost_of_model_is_beside_its_responses():
    """The cost of a model is in the row of its responses, whatever its name.

    A name with a slash, for example from a model hub, is one route with a cost and a response, and not two routes.
    """
    for name in ("org/faces", "faces (v1: int8)"):
        assert run(lambda loop, name=name: served_by(named(name), loop)) == (name, name, {name: (0.010, 1)})


def test_a_replica_may_be_named_by_its_address():
    """The route of a response is the whole name of the replica, not the scheme of its address."""

    async def main(loop):
        return await served_by(Replicas(Replica("http://a:8000/", si.Stack(named("org/faces")))), loop)

    route = "http://a:8000/"
    assert run(main) == (route, route, {route: (0.010, 1)})


def test_routes_with_parentheses_are_told_apart():
    """A route has the same name in the labels of a telemetry and in the costs."""
    names = ("large (fp16)", "large (int8)")

    async def main(loop):
        telemetry, meter = si.Telemetry(labels=("route",)), si.CostMeter(per_second=1.0)
        models = [ScriptedBackend(ConnectionError("down")), ScriptedBackend()]
        routes = [
            si.Route(name, si.Stack(model), quality=quality)
            for name, model, quality in zip(names, models, (1.0, 0.5), strict=True)
        ]
        async with si.Stack(telemetry, meter, si.FallbackRouter(*routes), clock=loop.clock) as service:
            await service(1.0)
        (labeled,) = telemetry.statistics().labeled
        return dict(labeled.labels), {name: row.responses for name, row in meter.statistics().routes.items()}

    labels, responses = run(main)

    assert labels == {"route": "large (int8)"}
    assert responses == {"large (fp16)": 0, "large (int8)": 1}
