"""Live page of the demo, which is served while the demo runs and shows the services that are running."""

import asyncio
import importlib
import urllib.error
import urllib.request

import pytest

import streaminfer as si
from streaminfer.testing import ScriptedBackend


@pytest.fixture
def live_page(_examples_can_be_imported):
    return importlib.import_module("demo.live_page")


def fetch(address):
    return urllib.request.urlopen(address, timeout=30).read().decode()  # noqa: S310 - our own server


def test_page_is_served_while_the_demo_runs(live_page, capfd):
    told = []

    async def demo():
        stack = live_page.show(
            si.Stack(si.Telemetry("microphones"), si.AdaptiveBatcher(max_batch_size=2), ScriptedBackend())
        )
        async with stack:
            return await asyncio.to_thread(fetch, f"{told[0].split()[-1]}events?poll")

    seen = asyncio.run(live_page.serve_page_during(demo(), told.append))
    assert '"microphones: in flight"' in seen
    with pytest.raises(urllib.error.URLError):
        fetch(told[0].split()[-1])
    assert capfd.readouterr().err == ""  # nothing between the demo's own lines


def test_an_error_of_the_demo_ends_the_page(live_page):
    async def demo():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(live_page.serve_page_during(demo(), str))
