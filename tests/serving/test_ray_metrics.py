"""Statistics of a stack as metrics of Ray, whose module is replaced by a fake that records values."""

import sys
from types import ModuleType

import pytest

import streaminfer as si
from streaminfer.serving.ray.ray_metrics import RayMetrics
from streaminfer.testing import ScriptedBackend


@pytest.fixture
def gauges(monkeypatch):
    """Return the values that were set, by name and labels."""
    values = {}

    class Gauge:
        def __init__(self, name, *, description, tag_keys):
            assert description
            self.name, self.keys = name, set(tag_keys)

        def set(self, value, *, tags):
            assert set(tags) == self.keys
            "".join(tags.values()).encode("ascii")  # as Ray does
            values[self.name, *sorted(tags.items())] = value

    modules = {name: ModuleType(name) for name in ("ray", "ray.serve", "ray.serve.metrics")}
    modules["ray.serve.metrics"].Gauge = Gauge
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return values


async def test_publishing_sets_metrics_to_current_values(loop, gauges):
    """Publishing sets counters, gauges and buckets to their current values instead of adding to them."""
    stack = si.Stack(
        si.Telemetry("m"), si.AdaptiveBatcher(max_batch_size=4), ScriptedBackend(duration_s=0.01), clock=loop.clock
    )
    async with stack:
        metrics = RayMetrics(stack)
        await stack(1.0)
        metrics.publish()
        await stack(2.0)
        metrics.publish()

    names = {name for name, *_ in gauges}
    assert {"streaminfer_requests_total", "streaminfer_batcher_queued", "streaminfer_stack_state"} <= names
    of = (("layer", "Telemetry"), ("service", "m"))
    assert gauges["streaminfer_requests_total", of[0], ("outcome", "ok"), of[1]] == 2
    assert gauges["streaminfer_request_duration_seconds_count", *of] == 2
    assert gauges["streaminfer_request_duration_seconds_sum", *of] == pytest.approx(0.02, rel=0.1)
    assert gauges["streaminfer_request_duration_seconds_bucket", of[0], ("le", "+Inf"), of[1]] == 2


async def test_labels_of_ray_keep_their_meaning(loop, gauges):
    """Ray's label ``replica`` names the replica of the deployment, so our label gets another name."""
    replicas = si.Replicas(si.Replica("r1", si.Stack(ScriptedBackend())), si.Replica("r2", si.Stack(ScriptedBackend())))
    async with si.Stack(replicas, clock=loop.clock) as stack:
        RayMetrics(stack).publish()
    labels = {key for _, *labels in gauges for key, _ in labels}
    assert "replica_" in labels
    assert "replica" not in labels


async def test_names_of_any_language_are_labels(loop, gauges):
    """Names of any language become distinct ASCII labels, because one bad label stops all metrics of its replica."""
    stack = si.Stack(si.Telemetry("für", labels=("tenant",)), ScriptedBackend(), clock=loop.clock)
    async with stack:
        for tenant in ("ü", "\\xfc", "\ud800"):
            await stack(1.0, tenant=tenant)
        RayMetrics(stack).publish()
    tenants = {label for _, *labels in gauges for key, label in labels if key == "tenant"}
    assert len(tenants) == 3
    assert any(("service", "f\\xfcr~") < label < ("service", "f\\xfcr~g") for _, *labels in gauges for label in labels)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(si.errors.MissingExtra, match=r"streaminfer\[ray\]"):
        si.serving.ray_deployment(lambda: si.Stack(ScriptedBackend()))
