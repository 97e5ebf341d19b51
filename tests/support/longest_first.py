"""Order of test files for xdist's ``--dist loadfile``: the longest first, and all tests of a server for one worker.

xdist would begin with the files that have the most tests. The longest files have few tests, so a worker would still run
one of them after the others have ended. And each worker would start the servers of all tests that it gets.
"""

import itertools
from collections import Counter

import pytest

TOGETHER = (
    # the same Triton, MLServer and fragile Triton
    (
        "backends/test_servers.py",
        "backends/onnx/test_binding.py",
        "backends/triton/repository/test_model_repository.py",
        "backends/triton/shared_memory/test_region_pool.py",
        *(
            f"backends/triton/test_{name}.py"
            for name in ("backend", "faults", "mlserver", "server_errors", "stop", "versions")
        ),
    ),
)
"""Files whose tests share servers, which a process starts once and slowly."""

LONGEST = (
    *itertools.chain.from_iterable(TOGETHER),
    "examples/test_container.py",
    "examples/test_demo_report.py",
    "serving/test_ray_cluster.py",
    "docs/test_docs.py",
    "internal/display/test_figures.py",
    "packaging/test_fallback.py",
    "resilience/limit/test_convergence.py",
    "telemetry/histograms/test_properties.py",
    "telemetry/live_page/test_page_in_browser.py",
    "examples/test_voice_frameworks.py",
    "docs/test_notebooks.py",
    "batching/planner/test_pipelined_batches.py",
)
"""Files that take more than twenty seconds, the longest first; add new ones here."""

_RANKS = {f"tests/{file}": rank for rank, file in enumerate(LONGEST)}
_SCOPES = {f"tests/{file}": f"tests/{files[0]}" for files in TOGETHER for file in files}


def _file(nodeid):
    return nodeid.partition("::")[0]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    files = [_file(item.nodeid) for item in items]
    tests = Counter(files)
    items.sort(key=lambda item: (_RANKS.get(file := _file(item.nodeid), len(_RANKS)), -tests[file]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class LongestFirst(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return _SCOPES.get(file, file)

    config.option.loadscopereorder = False  # the items are in order
    return LongestFirst(config, log)
