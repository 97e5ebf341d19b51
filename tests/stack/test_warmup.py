"""Kernels at the start of a serving process: compiled ahead of time, compiled by Numba, and missing."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest
from numba.core import caching

import streaminfer as si
from streaminfer.__main__ import main
from streaminfer._internal.loading.numba_jit import compile_exports, jit
from streaminfer.batching.planner import kernel_loader

SERVING = """
import asyncio, logging, sys, threading
import numpy as np
import streaminfer as si

async def ask(service, length):
    try:
        return await service(np.ones(length, np.int64), timeout_s=5.0)
    except si.StreamInferError as error:
        return error

async def main():
    batcher = si.AdaptiveBatcher(
        max_batch_size=4, slo_s=5.0, buckets=(8, 16),
        service_time=dict.fromkeys((8, 16), si.batching.ServiceTime.affine(2.0, 1.0)),  # nothing is on time as it stands: it is planned
    )
    model = si.CpuBackend(lambda batch: batch.sum(axis=1), executor="inline")
    async with si.Stack(si.Telemetry("serving"), batcher, model) as service:
        answers = await asyncio.gather(*(ask(service, 1 + number % 16) for number in range(64)))
    assert batcher.statistics().released["planned"], batcher.statistics()
    histogram = si.LatencyHistogram()
    histogram.record_many(np.full(5000, 0.001))
    assert histogram.count == 5000
"""


def no_folder(locator):
    """Raise, as Numba does if it cannot write to a folder."""
    raise PermissionError(locator.get_cache_path())


def twice(number):
    return 2 * number


def python(code, **variables):
    """Return the output of another interpreter, which runs with warnings as errors."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("STREAMINFER_", "NUMBA_"))}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_serving_process_has_no_numba_and_no_threads():
    """A serving process neither imports Numba nor starts threads."""
    code = SERVING + (
        "asyncio.run(main())\n"
        "si.warmup()\n"
        "print(sorted({'numba', 'llvmlite'} & set(sys.modules)), [t.name for t in threading.enumerate()])\n"
    )
    assert python(code) == "[] ['MainThread']\n"


def test_child_compiles_kernels_before_requests(tmp_path):
    """Without compiled kernels, a child process compiles them before the first request.

    The serving process loads the kernels that the child stored in the cache, and compiles nothing itself.
    """
    code = SERVING + (
        "from streaminfer.batching.planner import kernel_loader\n"
        "logging.basicConfig(stream=sys.stdout, level=logging.INFO, format='%(message)s')\n"
        "asyncio.run(main())\n"
        "from streaminfer.batching.planner import bucket_kernels, kernels\n"
        "for kernel in (kernels.choose, bucket_kernels.choose_bucket):\n"
        "    print(sum(kernel.stats.cache_hits.values()) > 0, sum(kernel.stats.cache_misses.values()))\n"
        "print([t.name for t in threading.enumerate() if 'compile' in t.name])\n"
    )
    printed = python(code, STREAMINFER_DISABLE_COMPILED="1", NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    out = [line for line in printed if not line.startswith(("stack ", "streaminfer serves uncompiled"))]
    assert "a child process compiles them" in out[0]
    assert "the kernels are compiled after" in out[1]
    assert out[2:] == ["True 0"] * 2 + ["[]"]


def test_failed_child_leaves_kernels_to_this_process(monkeypatch, caplog):
    """If the child process cannot compile the kernels, this process loads them itself."""
    loaded = []
    monkeypatch.setattr(kernel_loader, "_loaded", None)
    monkeypatch.setattr(kernel_loader, "is_compiled_ahead", lambda: False)
    monkeypatch.setattr(kernel_loader, "load", lambda: loaded.append("planner"))
    for executable in ("/nonexistent/python", ""):
        monkeypatch.setattr(sys, "executable", executable)
        kernel_loader.prepare()
    assert loaded == ["planner"] * 2
    assert caplog.text.count("the child process did not compile the kernels") == 2


def test_a_child_that_fails_may_print_any_bytes(monkeypatch, caplog, tmp_path):
    """The log has the output of a failed child, even if a path or a native library wrote bytes of another encoding."""
    child = tmp_path / "python"
    child.write_bytes(b"#!/bin/sh\nprintf 'no compiler in /caf\\351' >&2\nexit 1\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))

    kernel_loader._compile_in_child()

    assert "did not compile the kernels, so this one does: no compiler in /caf" in caplog.text


def test_concurrent_starts_share_one_warmup_child(monkeypatch):
    """Stacks that start at once share one child process, because compiling takes a core for seconds."""
    children = []
    loaded = threading.Event()
    monkeypatch.setattr(kernel_loader, "is_ready", loaded.is_set)
    monkeypatch.setattr(kernel_loader, "load", loaded.set)

    def compile_in_child():
        assert kernel_loader._preparing.locked()
        children.append("child")

    monkeypatch.setattr(kernel_loader, "_compile_in_child", compile_in_child)

    async def main():
        stacks = [si.Stack(si.AdaptiveBatcher(max_batch_size=4), si.CpuBackend(twice)) for _ in range(3)]
        await asyncio.gather(*(stack.start() for stack in stacks))
        await asyncio.gather(*(stack.stop() for stack in stacks))

    asyncio.run(main())
    assert children == ["child"]


def test_start_without_kernels_or_numba_fails():
    """Without kernels and Numba, the start fails with one clear error, before any request and without threads."""
    code = SERVING + (
        "sys.modules['numba'] = None\n"
        "try:\n"
        "    asyncio.run(main())\n"
        "except si.MissingExtra as error:\n"
        "    print(error.name, [t.name for t in threading.enumerate()])\n"
        "    print(error)\n"
    )
    first, message = python(code, STREAMINFER_DISABLE_COMPILED="1").splitlines()
    assert first == "numba ['MainThread']"
    assert "pip install numba" in message


@pytest.mark.parametrize("ahead", [True, False], ids=["compiled ahead", "by Numba"])
def test_the_warmup_command_loads_every_kernel(ahead, monkeypatch, capsys):
    monkeypatch.setattr(kernel_loader, "is_compiled_ahead", lambda: ahead)

    assert main(["warmup"]) == 0

    first, *steps = capsys.readouterr().out.splitlines()
    assert first == ("kernels: compiled ahead of time" if ahead else "kernels: compiled by Numba, once on a machine")
    assert [step.split("...")[0].strip() for step in steps] == ["planner", "offline optimum", "placement"]


def test_the_warmup_command_says_what_is_missing(monkeypatch, capsys):
    def missing():
        raise kernel_loader.MissingExtra("the planner needs its kernels: pip install numba", name="numba")

    monkeypatch.setattr(kernel_loader, "load", missing)
    assert main(["warmup"]) == 1
    assert "pip install numba" in capsys.readouterr().err


def test_warmup_command_fails_without_a_kernel_cache(monkeypatch, capsys):
    """The command fails if the kernels cannot be stored, so that no image is built that compiles at each start."""
    monkeypatch.setattr(kernel_loader, "is_compiled_ahead", lambda: False)
    monkeypatch.setattr(kernel_loader, "load", lambda: compile_exports({"twice": (jit(twice), "int64(int64)")}))
    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", no_folder)

    assert main(["warmup"]) == 1

    assert "set NUMBA_CACHE_DIR" in capsys.readouterr().err


def test_start_logs_a_missing_kernel_cache(tmp_path):
    """The child process stops at the first kernel that it cannot store, and the log says what to set."""
    code = SERVING + (
        "logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format='%(message)s')\nasyncio.run(main())\n"
    )
    places = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": str(tmp_path / "file")}
    (tmp_path / "file").write_text("no folder")

    printed = python(code, STREAMINFER_DISABLE_COMPILED="1", **places).splitlines()

    (warned,) = [line for line in printed if not line.startswith("streaminfer serves uncompiled")]
    assert warned == (
        "the child process did not compile the kernels, so this one does: Numba finds no folder in which to keep what "
        "it compiles: set NUMBA_CACHE_DIR to one that this user can write to"
    )


def test_the_command_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "streaminfer", "--help"], capture_output=True, text=True, check=True)
    assert "warmup" in done.stdout
