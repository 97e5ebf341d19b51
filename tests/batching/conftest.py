"""Async tests run in virtual time, on a loop that they take as ``loop``."""

import inspect

import pytest

from streaminfer.testing import run


@pytest.fixture
def loop():
    """The virtual loop; what stands here is replaced when the test begins."""


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test):
        return None
    taken = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    run(lambda loop: test(**{**taken, "loop": loop}))
    return True
