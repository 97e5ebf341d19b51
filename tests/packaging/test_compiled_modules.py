"""A process uses all compiled modules or none, and warns once if it serves uncompiled."""

import importlib.machinery
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import streaminfer as si
from streaminfer._internal.loading import compiled_modules

ROOT = Path(__file__).parents[2]
SUFFIX = importlib.machinery.EXTENSION_SUFFIXES[0]
SERVE_TWICE = """
import asyncio, streaminfer as si
async def main():
    for _ in range(2):
        batcher = si.AdaptiveBatcher(max_batch_size=2, policy="greedy")  # which needs no kernels
        async with si.Stack(batcher, si.CpuBackend(lambda x: x, executor="inline")) as stack:
            assert await stack(1.0) == 1.0
for _ in range(2):
    asyncio.run(main())
print(si.compiled)
"""


@pytest.fixture(scope="module")
def plain_tree(tmp_path_factory):
    """Return the root of a checkout without build products."""
    root = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "*.c", "__pycache__")
    shutil.copytree(ROOT / "streaminfer", root / "streaminfer", ignore=ignored)
    return root


def test_this_process_uses_the_built_modules():
    """The process uses the compiled modules if they were built, and `compiled` says so."""
    from streaminfer.batching.queue import _queue_cy

    assert si.compiled is compiled_modules.are_used()
    assert si.compiled is _queue_cy.__file__.endswith(SUFFIX)


@pytest.mark.parametrize("root", [True, False], ids=["in its root", "elsewhere, disabled"])
def test_serving_uncompiled_warns_once(root, plain_tree, tmp_path, clean_environment):
    variables = {} if root else {"STREAMINFER_DISABLE_COMPILED": "1", "PYTHONPATH": str(plain_tree)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SERVE_TWICE],
        cwd=plain_tree if root else tmp_path,
        env=clean_environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("streaminfer serves uncompiled, which costs more CPU per request: ")
    assert str(plain_tree / "streaminfer") in line if root else "STREAMINFER_DISABLE_COMPILED=1" in line


def test_failing_log_handler_stops_no_uncompiled_start(monkeypatch, capsys):
    """A log handler that fails does not stop a start with uncompiled modules."""

    def fail(record):
        raise ConnectionError("the log server is away")

    monkeypatch.setattr(compiled_modules, "are_used", lambda: False)
    monkeypatch.setattr(logging.getLogger("streaminfer"), "filters", [fail])

    compiled_modules.warn_if_unused.__wrapped__()

    assert "ConnectionError: the log server is away" in capsys.readouterr().err


def test_partly_compiled_package_is_not_imported(plain_tree, tmp_path, run_python):
    """Importing a package that is compiled in part is an error, unless compiling is disabled."""
    shutil.copytree(plain_tree, tmp_path, dirs_exist_ok=True)
    extension = tmp_path / "streaminfer" / "telemetry" / "histograms" / f"_histogram_cy{SUFFIX}"
    extension.touch()
    code = "try:\n    import streaminfer\nexcept ImportError as error:\n    print(error)"
    said = run_python(sys.executable, "-c", code, PYTHONPATH=str(tmp_path))
    assert f"streaminfer in {tmp_path / 'streaminfer'} is compiled in part" in said
    said = run_python(
        sys.executable,
        "-c",
        "import streaminfer as si; print(si.compiled, si.LatencyHistogram().count)",
        PYTHONPATH=str(tmp_path),
        STREAMINFER_DISABLE_COMPILED="1",
    )
    assert said == "False 0\n"


def test_modules_of_another_python_do_not_count(plain_tree, tmp_path):
    shutil.copytree(plain_tree, tmp_path, dirs_exist_ok=True)
    (tmp_path / "streaminfer" / "telemetry" / "_histogram_cy.cpython-27-somewhere.so").touch()
    compiled, missing = compiled_modules.look(tmp_path / "streaminfer")
    assert compiled == []
    assert len(missing) == len(list((ROOT / "streaminfer").rglob("*_cy.py")))
