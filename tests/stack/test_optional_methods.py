"""Optional methods of users' objects, checked when a stack is made."""

import pytest

import streaminfer as si
from streaminfer.testing import FakeClock, ScriptedBackend, run


async def refuses(self, request, *_):
    raise si.InvalidInput("no")


@pytest.mark.parametrize(
    ("name", "method", "says"),
    [
        ("stop", lambda self: None, r"Model\.stop: expected a method to call as stop\(drain=\), got stop\(\)"),
        ("start", lambda self, loop: None, r"Model\.start: expected a method to call as start\(\), got start\(loop\)"),
        ("admission", lambda self, request: None, r"admission\(request, now_ns\), got admission\(request\)"),
        ("validate", refuses, r"Model\.validate: expected a plain function"),
        ("statistics", refuses, r"Model\.statistics: expected a plain function"),
    ],
    ids=["stop", "start", "admission", "validate", "statistics"],
)
@pytest.mark.parametrize("where", ["backend", "service", "layer"])
def test_uncallable_optional_methods_raise(name, method, says, where):
    """An optional method that the stack cannot call as specified raises a `TypeError`.

    The stack raises when it is made: a wrong `stop` would fail only at the end, and a check that is not awaited would
    accept every request.
    """

    async def serve(self, request):
        return [row.inputs for row in request.rows] if where == "backend" else si.Response(request.inputs)

    model = type("Model", (), {"infer" if where == "backend" else "call": serve, name: method})()
    layers = [model]
    if where == "layer":
        layers = [type("Layer", (), {"wrap": lambda self, inner: model})(), ScriptedBackend()]

    with pytest.raises(TypeError, match=says):
        si.Stack(*layers)


def test_uncallable_layer_methods_raise():
    """A method of a layer that the stack cannot call as specified raises a `TypeError`."""
    layer = type("Layer", (), {"wrap": lambda self, inner: inner, "statistics": refuses})()
    with pytest.raises(TypeError, match=r"Layer\.statistics: expected a plain function"):
        si.Stack(layer, ScriptedBackend())


def test_rejected_stack_leaves_its_layers_unchanged():
    """A stack with a clock that rejects one of its layers does not bind the others to its clock or wrap them."""
    batcher = si.AdaptiveBatcher(max_batch_size=1)
    for wrong, says in ((si.Telemetry, "got the class Telemetry"), (3, "expected layers")):
        with pytest.raises(TypeError, match=says):
            si.Stack(wrong, batcher, ScriptedBackend(), clock=FakeClock(5))

    async def main(loop):
        async with si.Stack(batcher, ScriptedBackend(), clock=loop.clock) as stack:
            return await stack(1.0, timeout_s=1.0)

    assert run(main) == 1.0
