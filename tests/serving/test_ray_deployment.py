"""`ray_deployment` beside threads, with fakes of Ray's modules."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import ModuleType

import pytest

from streaminfer.serving.ray import deployment


@pytest.fixture
def made(monkeypatch):
    """Return the settings of routers that Ray's fake has made."""
    made = []

    class RequestRouterConfig:
        def __init__(self, **settings):
            made.append(settings)

    modules = {name: ModuleType(name) for name in ("ray", "ray.serve", "ray.serve.config", "ray.serve.request_router")}
    modules["ray.serve.config"].RequestRouterConfig = RequestRouterConfig
    modules["ray.serve.request_router"].RequestRouter = object
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    deployment._make_router_config.cache_clear()
    yield made
    deployment._make_router_config.cache_clear()


def test_router_settings_are_made_once(made):
    together = Barrier(8)

    def make(_):
        together.wait()
        return deployment._router_config()

    with ThreadPoolExecutor(8) as threads:
        returned = set(threads.map(make, range(8)))
    assert len(made) == len(returned) == 1
