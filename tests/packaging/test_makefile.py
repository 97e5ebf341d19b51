"""`make test-all` runs the suite, compiled and not, on each interpreter that is here, and says which are not."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def make(*arguments, clean_environment):
    command = ["make", "--no-print-directory", *arguments]
    environment = clean_environment(MAKEFLAGS="")
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_each_interpreter_has_an_environment_of_its_own(clean_environment):
    done = make(
        "--dry-run", "test-all", f"PYTHONS={sys.executable} /nowhere/python", clean_environment=clean_environment
    )
    assert done.returncode == 0, done.stderr
    runs = [line for line in done.stdout.splitlines() if f".venv-{VERSION}/bin/python -m pytest" in line]
    assert [("DISABLE_COMPILED=1" in run, "-m uncompiled" in run) for run in runs] == [(False, False), (True, True)]
    assert done.stdout.splitlines()[-1] == f"passed: {VERSION}; failed: none; not here: /nowhere/python"


def test_no_interpreter_is_a_failure(clean_environment):
    done = make("test-all", "PYTHONS=/nowhere/python", clean_environment=clean_environment)
    assert done.returncode != 0
    assert "passed: none; failed: none; not here: /nowhere/python" in done.stdout
