"""Fixtures of all tests: uncompiled twins of compiled modules, virtual time, and the check for threads left behind."""

import gc
import importlib.util
import inspect
import re
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import settings

from streaminfer._internal.loading import compiled_modules
from streaminfer.testing import FakeClock, run

pytest_plugins = ["longest_first", "machine"]
PACKAGE = Path(__file__).parent.parent / "streaminfer"

compiled_modules.warn_if_unused()  # warn once here: otherwise the warning is in the log of the first test that serves
# no deadline: on a shared machine hypothesis would measure the stalls of the machine and not the code
settings.register_profile("streaminfer", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("streaminfer")


def load_plain(name):
    """Return the source of a compiled module, imported uncompiled under another name."""
    path = PACKAGE.joinpath(*name.split(".")).with_suffix(".py")
    module_name = f"plain_{name.replace('.', '_')}"
    if module_name not in sys.modules:
        # its siblings must be uncompiled too: compiled classes hide from Python the attributes that they share
        siblings = re.findall(
            r"^from streaminfer\.((?:\w+\.)+\w+_cy) import", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        instead = {f"streaminfer.{sibling}": load_plain(sibling) for sibling in siblings}
        spec = importlib.util.spec_from_file_location(module_name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        with pytest.MonkeyPatch.context() as patch:
            for sibling, twin in instead.items():
                patch.setitem(sys.modules, sibling, twin)
            spec.loader.exec_module(module)
    return sys.modules[module_name]


@pytest.fixture(scope="session")
def plain():
    """Return the function that loads an uncompiled twin, as in ``plain("batching.queue._queue_cy")``."""
    return load_plain


def pytest_collection_modifyitems(config, items):
    """Deselect comparisons with uncompiled twins if no module is compiled: both sides would be the same source."""
    if compiled_modules.are_used():
        return
    left_out = [item for item in items if "plain" in item.fixturenames]
    items[:] = [item for item in items if "plain" not in item.fixturenames]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def clock():
    return FakeClock(1_000)


@pytest.fixture
def loop():
    """Reserve the argument ``loop``, for which `pytest_pyfunc_call` passes the virtual loop."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run an async test in virtual time, on a loop that it gets as ``loop``."""
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    taken = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    run(lambda loop: test(**{**taken, "loop": loop}))
    return True


@pytest.fixture(scope="module", autouse=True)
def _heap_is_frozen():
    """Freeze the heap, so that a collection visits the objects of one test file only: 1 ms instead of 300 ms.

    A stack that starts leaves a heap with frozen objects alone, so `test_serving_process.py` unfreezes the heap first.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_thread_is_left_behind():
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in left:
        if thread.name == "AnyIO worker thread":  # its loop tells it to end, and does not wait for it
            thread.join(30)
    left = [thread for thread in left if thread.is_alive()]
    assert not left, f"threads left behind: {left}"
