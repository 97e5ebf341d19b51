"""The route that a response came from, by its source."""

import pytest

import streaminfer as si
from streaminfer.telemetry.families.routes import route_of
from streaminfer.testing import ScriptedBackend, run


@pytest.mark.parametrize(
    ("source", "route"),
    [
        ("small", "small"),
        ("small (large: circuit_open)", "small"),
        ("small (large: )", "small"),
        ("small (int8)", "small (int8)"),
        ("small (int8) (large (fp16): infeasible)", "small (int8)"),
        ("default (large: late)", "default"),
        ("stable/small (large: late)", "stable"),
        ("cache", "cache"),
        ("", ""),
    ],
)
def test_route_is_the_outermost_without_a_reason(source, route):
    """Parentheses in a name stay, those of a reason go."""
    assert route_of(source) == route


def test_routes_with_parentheses_are_told_apart():
    """A route is named alike in the labels of a telemetry and in the costs."""
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
