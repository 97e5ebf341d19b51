"""The histogram in two builds: as installed, and over the uncompiled source of its state."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path

import pytest

import streaminfer.telemetry.histograms.latency_histogram

STATE = "streaminfer.telemetry.histograms._histogram_cy"
FOLDER = Path(streaminfer.telemetry.histograms.latency_histogram.__file__).parent


def load_plain(name, file):
    loader = importlib.machinery.SourceFileLoader(name, str(FOLDER / file))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    sys.modules[name] = module
    loader.exec_module(module)
    return module


def plain_histogram():
    state = load_plain("plain_histogram_state", "_histogram_cy.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, STATE, state)
        return load_plain("plain_histogram", "latency_histogram.py")


BUILDS = {"built": streaminfer.telemetry.histograms.latency_histogram, "plain": plain_histogram()}


@pytest.fixture
def switch_often():
    """Make threads switch as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture(scope="session", params=BUILDS)
def build(request):
    """Return the module streaminfer.telemetry.histograms.latency_histogram, as installed and uncompiled."""
    return BUILDS[request.param]


@pytest.fixture(scope="session")
def builds():
    return BUILDS


@pytest.fixture(scope="session")
def histogram_class(build):
    return build.LatencyHistogram
