"""The pytest plugin: its fixtures and options, and its use together with pytest-benchmark."""

import json
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

MODEL = """
import asyncio, pytest, streaminfer as si

SETTINGS = dict(arrivals=si.loadtest.Constant(1000), inputs=[1.0], duration_s=4.0, slo_s=0.1)

class Model:
    def __init__(self, seconds):
        self.seconds, self.count = seconds, 0
    async def call(self, request):
        self.count += 1
        await asyncio.sleep(self.seconds * (1 + self.count % 7 + self.count % 11 / 10))
        return si.Response(request.inputs)
"""


class Imports:
    """Plugin that keeps the modules that pytest runs in this process import."""

    def __init__(self):
        self.modules = {}

    def pytest_unconfigure(self):
        self.modules |= sys.modules


@pytest.fixture
def imports():
    """Restore, at the end of a test, the modules that its runs imported.

    pytester removes them, so a later test would import a second copy, whose classes differ from those of the first.
    """
    kept = Imports()
    yield kept
    for name, module in kept.modules.items():
        if name != "test_load":  # each run has its own
            sys.modules.setdefault(name, module)


@pytest.fixture
def run_tests(imports, pytester, monkeypatch):  # `imports` first, so that it ends last
    """Return a function that runs a test file in a separate run of pytest."""
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):  # under xdist pytest-benchmark would measure nothing
        monkeypatch.delenv(name, raising=False)

    def run(text, *arguments, xdist=False):
        pytester.makepyfile(test_load=MODEL + text)
        installed = any(point.name == "streaminfer" for point in entry_points(group="pytest11"))
        plugin = () if installed else ("-p", "streaminfer.loadtest.pytest_plugin")  # from a source tree
        off = () if xdist else ("-p", "no:xdist")
        return pytester.runpytest_inprocess(*plugin, "-p", "no:cacheprovider", *off, *arguments, plugins=[imports])

    return run


TAIL = """
def test_tail(loadtest):
    report = loadtest.virtually(lambda clock: Model({seconds}), **SETTINGS)
    assert report.passed
"""


def test_saved_run_is_compared(run_tests, pytester):
    """A slower version fails its test, because its tail regressed."""
    run_tests(TAIL.format(seconds=0.001), "--loadtest-save=saved").assert_outcomes(passed=1)
    saved = {path.suffix: path.read_text(encoding="utf-8") for path in (pytester.path / "saved").iterdir()}
    assert set(saved) == {".json", ".html"}
    assert json.loads(saved[".json"])["report"]["requests"] == 4000

    same = run_tests(TAIL.format(seconds=0.001), "--loadtest-compare=saved")
    slower = run_tests(TAIL.format(seconds=0.002), "--loadtest-compare=saved")

    same.assert_outcomes(passed=1)
    same.stdout.fnmatch_lines(["*load tests*", "*Passed: 100.00% of 4,000 requests*", "*p99 unchanged*"])
    slower.assert_outcomes(failed=1)
    slower.stdout.fnmatch_lines(["*p99 regressed*"])
    slower.stdout.fnmatch_lines(["> *loadtest.virtually(*", "E *Failed: p99 regressed*"])
    slower.stdout.no_fnmatch_line("*pytest_plugin.py:*")


def test_run_without_saved_baseline_passes(run_tests):
    """A run without a saved baseline passes, and the summary says that the baseline is missing."""
    result = run_tests(TAIL.format(seconds=0.001), "--loadtest-compare=nowhere")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*is missing, so there is nothing to compare with*"])


@pytest.mark.parametrize("option", ["--loadtest-save", "--loadtest-compare"])
def test_folder_without_an_equals_sign_is_rejected(run_tests, pytester, option):
    """An option without an equals sign is an error, because pytest would take the folder for a folder of tests.

    Pytest would then name the tests from another root, and find nothing to compare.
    """
    pytester.mkdir("saved")

    result = run_tests(TAIL.format(seconds=0.001), option, "saved")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option}: expected {option}=FOLDER, because*"])


def test_parameters_that_look_alike(run_tests, pytester):
    """Runs of two tests are saved apart, even if their parameters are equal in a file name."""
    result = run_tests(
        """
@pytest.mark.parametrize("times", [1, 2], ids=["p99 < 1", "p99 > 1"])
def test_tail(loadtest, times):
    loadtest.virtually(lambda clock: Model(0.001), **SETTINGS)
""",
        "--loadtest-save=saved",
    )

    result.assert_outcomes(passed=2)
    assert len(list((pytester.path / "saved").glob("test_load.py.test_tail-p99-1-*.json"))) == 2


def test_service_in_place_of_a_function_is_an_error(run_tests):
    """A stack in place of a function is an error: it would take the clock for a request that is never awaited."""
    result = run_tests(
        """
def test_stack(loadtest):
    stack = si.Stack(si.AdaptiveBatcher(max_batch_size=4), si.testing.ScriptedBackend())
    with pytest.raises(TypeError, match="make_service: expected a function of the clock .*, got <Stack"):
        loadtest.virtually(stack, **SETTINGS)
""",
        "-W",
        "error",
    )

    result.assert_outcomes(passed=1)


def test_real_time(run_tests):
    """A call runs in an ordinary event loop; a test may call more than once."""
    result = run_tests(
        """
def test_twice(loadtest):
    for _ in range(2):
        report = loadtest(Model(0.001), **{**SETTINGS, "duration_s": 0.05, "slo_s": 5.0})
        assert report.outcomes == {"ok": 50}
"""
    )

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*test_twice:*", "*test_twice-2:*"])


def test_async_test_gets_an_error_with_advice(run_tests):
    """A call in a running event loop is an error with advice, and leaves no coroutine that is never awaited."""
    result = run_tests(
        """
def test_it(loadtest):
    async def in_a_loop():
        loadtest(Model(0.001), **SETTINGS)

    with pytest.raises(RuntimeError, match=r"not async, or await si.loadtest.run"):
        asyncio.run(in_a_loop())
""",
        "-Werror",
    )

    result.assert_outcomes(passed=1)


def test_benchmark_extra_info_has_the_tails(run_tests, pytester):
    """If a test uses the fixture of pytest-benchmark, the tails are in its ``extra_info`` and in its JSON."""
    result = run_tests(
        """
def test_both(benchmark, loadtest):
    loadtest.virtually(lambda clock: Model(0.001), **SETTINGS)
    assert benchmark.extra_info["p99_s"] == pytest.approx(0.0079, abs=1e-3)
""",
        "--benchmark-json=benchmark.json",
    )

    result.assert_outcomes(passed=1)
    (saved,) = json.loads((pytester.path / "benchmark.json").read_text(encoding="utf-8"))["benchmarks"]
    assert saved["extra_info"]["requests"] == 4000


def test_benchmark_of_a_service_without_responses(run_tests, pytester):
    """An infinite tail is null in the JSON of pytest-benchmark."""
    result = run_tests(
        """
async def broken(_inputs):
    raise ValueError

def test_both(benchmark, loadtest):
    loadtest.virtually(lambda clock: broken, **SETTINGS)
""",
        "--benchmark-json=benchmark.json",
    )

    result.assert_outcomes(passed=1)
    (saved,) = json.loads((pytester.path / "benchmark.json").read_text(encoding="utf-8"))["benchmarks"]
    assert saved["extra_info"]["p99_s"] is None
    assert saved["stats"]["rounds"] == 1


@pytest.mark.parametrize("option", ["--benchmark-disable", "--benchmark-skip"])
def test_benchmark_is_off(run_tests, option):
    """The load test runs with ``--benchmark-disable``, and is skipped with ``--benchmark-skip``."""
    result = run_tests(
        """
def test_both(benchmark, loadtest):
    assert loadtest.virtually(lambda clock: Model(0.001), **SETTINGS).requests == 4000
""",
        option,
    )

    result.assert_outcomes(**({"passed": 1} if option == "--benchmark-disable" else {"skipped": 1}))


def test_xdist_workers_report_to_the_main_process(run_tests):
    """The main process prints the lines of load tests in worker processes."""
    result = run_tests(TAIL.format(seconds=0.001), "-n1", xdist=True)

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*load tests*", "*Passed: 100.00% of 4,000 requests*"])


def test_plugin_loads_in_an_older_pytest():
    """Pytest loads the plugin wherever the package is installed, so it loads in 8.3, without `TerminalReporter`."""
    code = "import pytest; del pytest.TerminalReporter; import streaminfer.loadtest.pytest_plugin"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_plugin_imports_no_further_modules():
    """A run of pytest without load tests imports nothing but the plugin's own module and the empty packages around it."""
    code = "import sys, pytest; before = set(sys.modules); import streaminfer.loadtest.pytest_plugin; "
    code += "print(*sorted(set(sys.modules) - before))"

    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert [name for name in printed.split() if not name.startswith("streaminfer")] == []
    assert len(printed.split()) < 10


def test_virtual_loop(run_tests):
    """An hour passes at once, and the tasks left at the end are cancelled."""
    result = run_tests(
        """
ended = []

async def forever():
    try:
        await asyncio.sleep(1e6)
    finally:
        ended.append(True)

def test_hour(virtual_loop):
    async def main():
        virtual_loop.create_task(forever())
        await asyncio.sleep(3600)
    virtual_loop.run_until_complete(main())
    assert virtual_loop.time() == pytest.approx(3600)

def test_nothing_is_left():
    assert ended == [True]
"""
    )

    result.assert_outcomes(passed=2)
