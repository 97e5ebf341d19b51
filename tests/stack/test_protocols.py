"""Nodes, wrappers, their capabilities, and users' objects that are adapted."""

from unittest.mock import MagicMock

import pytest

import streaminfer as si
from streaminfer import testing
from streaminfer.protocols import Admission, AdmissionReason, Capabilities, Node, Wrapper, adapt, name_of


class Foreign:
    """User's wrapper with an inner object and the attributes that it is given."""

    def __init__(self, inner=None, **own):
        self.inner = inner
        self.__dict__.update(own)


class Model(Node):
    def capabilities(self):
        return Capabilities(max_batch_size=8, batch_axes={"x": 1}, enforces_deadline=True)


def run(coroutine):
    with pytest.raises(StopIteration):
        coroutine.send(None)


def test_capabilities_are_frozen():
    with pytest.raises(AttributeError):
        Capabilities().max_batch_size = 3


def test_adapt_returns_a_node_unchanged():
    model = Model()
    assert adapt(model) is model


def test_bare_node_has_no_capabilities():
    node = Node()
    assert node.capabilities() == Capabilities()
    assert (node.children, node.statistics(), node.starts, node.stops) == ({}, None, False, False)
    run(node.start())
    run(node.stop(drain=False))


def test_wrapper_has_capabilities_of_the_inner_object():
    assert Wrapper(Model()).capabilities() == Model().capabilities()
    assert Wrapper(Foreign(Model())).capabilities() == Model().capabilities()


def test_wrapper_has_the_name_of_the_inner_object():
    assert Wrapper(Wrapper(Foreign(name="faces"))).name == "faces"
    assert Wrapper(Model()).name == "Model"
    assert name_of(run) == "run"


class TestAdapt:
    def test_adapt_reads_each_capability(self):
        names = set(Capabilities._fields) - {"slo"}
        said = {name: object() for name in names}
        offered = adapt(Foreign(**said)).capabilities()
        assert {name: getattr(offered, name) for name in names} == said

    def test_capability_of_the_outermost_object_wins(self):
        """A capability is that of the outermost object that declares it."""
        offered = adapt(Foreign(Foreign(Model(), max_batch_size=4), batch_axes={"y": 0})).capabilities()
        assert (offered.max_batch_size, offered.batch_axes, offered.enforces_deadline) == (4, {"y": 0}, True)

    def test_none_leaves_the_inner_capability(self):
        assert adapt(Foreign(Model(), max_batch_size=None)).capabilities().max_batch_size == 8

    def test_false_overrides_the_inner_capability(self):
        assert adapt(Foreign(Model(), enforces_deadline=False)).capabilities().enforces_deadline is False

    def test_objective_in_seconds_is_fixed(self):
        assert adapt(Foreign(Foreign(slo_s=0.1))).capabilities().slo.slo_ns == 100_000_000

    @pytest.mark.parametrize("slo_s", [0, -1, float("inf"), "0.1"])
    def test_a_wrong_objective_is_named(self, slo_s):
        with pytest.raises((TypeError, ValueError), match="slo_s: expected a finite number of seconds > 0, got"):
            adapt(Foreign(slo_s=slo_s)).capabilities()

    def test_objective_in_nanoseconds_is_read_each_time(self):
        service = Foreign(Foreign(slo_s=0.1), slo_ns=None, slo_s=0.2)
        slo = adapt(service).capabilities().slo
        assert slo.slo_ns is None
        service.slo_ns = 5
        assert slo.slo_ns == 5

    def test_starts_stops_and_binds_the_clock(self):
        calls = []

        class Service:
            async def start(self):
                calls.append("start")

            async def stop(self, *, drain):
                calls.append(f"stop {drain}")

            def bind_clock(self, clock):
                calls.append(clock)

            def statistics(self):
                return "counted"

        node = adapt(Service())
        assert (node.starts, node.stops, node.statistics()) == (True, True, "counted")
        run(node.start())
        run(node.stop(drain=False))
        node.bind_clock("clock")
        assert calls == ["start", "stop False", "clock"]

    def test_bare_object_adapts_to_an_empty_node(self):
        """An object without optional methods becomes a node without them, whose start and stop do nothing."""
        node = adapt(object())
        assert (node.starts, node.stops, node.statistics(), node.name, node.children) == (False, False, None, "", {})
        assert node.capabilities() == Capabilities()
        run(node.start())
        run(node.stop())
        node.bind_clock(lambda: 0)

    def test_mock_has_no_inner_service(self):
        mock = MagicMock()
        assert adapt(mock).capabilities().max_batch_size is mock.max_batch_size
        assert adapt(mock).children == {}


def test_the_clock_reaches_children():
    clocks = []

    class Bound(Node):
        def bind_clock(self, clock):
            clocks.append((self, clock))

    layer, inner = Bound(), Bound()
    Wrapper(inner, layer).bind_clock("clock")
    assert clocks == [(layer, "clock"), (inner, "clock")]


def test_reasons_are_words():
    assert f"{AdmissionReason.QUEUE_FULL}" == "queue_full"
    assert {AdmissionReason.CLOSED: 1} == {"closed": 1}
    assert Admission(False, AdmissionReason.LIMIT).reason == "limit"


def test_kernels_are_loaded_inside_routers():
    """The start of the outermost stack loads kernels inside routers too, because it freezes the heap afterwards."""
    loaded = []

    class Planner(Node):
        async def call(self, request):
            return si.Response(request.inputs)

        async def load_kernels(self):
            loaded.append(self)

    async def main(loop):
        planner = Planner()
        async with si.Stack(si.FallbackRouter(si.Route("only", si.Stack(si.Telemetry(), planner)))):
            assert loaded[0] is planner

    testing.run(main)
