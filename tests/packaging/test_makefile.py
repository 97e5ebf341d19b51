"""`make test-all` runs the suite, compiled and uncompiled, on each interpreter that exists, and lists the others."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHON = os.path.relpath(sys.executable, ROOT)
"""Relative, because the path of the checkout may have spaces, and spaces separate the interpreters of PYTHONS."""
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def make(*arguments, clean_environment):
    command = ["make", "--no-print-directory", *arguments]
    environment = clean_environment(MAKEFLAGS="")
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_each_interpreter_has_its_own_environment(clean_environment):
    """Each interpreter has a separate virtual environment."""
    done = make("--dry-run", "test-all", f"PYTHONS={PYTHON} /nowhere/python", clean_environment=clean_environment)
    assert done.returncode == 0, done.stderr
    runs = [line for line in done.stdout.splitlines() if f".venv-{VERSION}/bin/python -m pytest --numprocesses" in line]
    assert [("DISABLE_COMPILED=1" in run, "-m uncompiled" in run) for run in runs] == [(False, False), (True, True)]
    assert done.stdout.splitlines()[-1] == f"passed: {VERSION}; failed: none; not here: /nowhere/python"


def interpreter(path, script):
    path.parent.mkdir(parents=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_name_may_be_an_interpreter_of_pyenv(clean_environment, tmp_path, monkeypatch):
    found = interpreter(tmp_path / "versions" / "9.9.1" / "bin" / "python9.9", f'exec "{sys.executable}" "$@"')
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    done = make("--dry-run", "test-all", "PYTHONS=python9.9", clean_environment=clean_environment)
    assert f"== CPython {VERSION} ({found})" in done.stdout
    assert done.stdout.splitlines()[-1] == f"passed: {VERSION}; failed: none; not here: none"


def test_other_interpreters_run_if_one_fails(clean_environment, tmp_path):
    """The suite runs on the other interpreters if it fails on one.

    All stamps exist, and a line of Python replaces the suite; the broken interpreter can only print its version.
    """
    broken = interpreter(tmp_path / "broken" / "python", 'case "$2" in *print*) echo 9.9;; *) exit 1;; esac')
    stamps = tmp_path / "stamps"
    stamps.mkdir()
    made = ("venv", "build-system", "install", "build", "group-test+demo", "servers", "debian", "bytecode", "kernels")
    for name in made:
        (stamps / name).touch()
    done = make(
        *("test-all", f"PYTHONS={broken} {PYTHON}", f"STAMPS={stamps}", "PYTEST=$(PYTHON) -c pass"),
        clean_environment=clean_environment,
    )
    assert done.stdout.splitlines()[-1] == f"passed: {VERSION}; failed: 9.9; not here: none"
    assert done.returncode != 0


def test_no_interpreter_is_a_failure(clean_environment):
    done = make("test-all", "PYTHONS=/nowhere/python", clean_environment=clean_environment)
    assert done.returncode != 0
    assert "passed: none; failed: none; not here: /nowhere/python" in done.stdout
