"""Environments are installed with uv, from where pip would take the packages; with pip where uv is not installed."""

import importlib.util
import os
import subprocess
import sys

import pytest
from servers import install


@pytest.fixture
def run(monkeypatch):
    """Run the script with arguments; return the command that takes its place, and its environment."""
    taken = []
    monkeypatch.setattr(os, "execve", lambda _, command, environment: taken.append((command, environment)))

    def made(*arguments):
        monkeypatch.setattr(sys, "argv", ["install.py", *arguments])
        install.main()
        return taken[-1]

    return made


def test_uv_takes_what_pip_would(run, monkeypatch):
    """The package of the right index, with pip's options, also from its variables."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: "there")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.test/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.test/simple https://b.test/simple")
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("UV_INDEX", "https://mine.test/simple")

    command, environment = run("--python", "/env/bin/python", "--no-deps", "one==1.0")

    assert command[1:6] == ["-m", "uv", "pip", "install", "--python"]
    assert command[6:] == ["/env/bin/python", "--quiet", "--no-deps", "one==1.0"]
    assert environment["UV_DEFAULT_INDEX"] == "https://mirror.test/simple"
    assert environment["UV_INDEX"] == "https://mine.test/simple"  # what is said of uv itself is stronger


def test_stronger_sections_of_pips_configuration_win():
    listed = """\
:env:.find-links='/wheels /more'
global.find-links='/other'
global.constraint='/etc/constraints.txt'
global.timeout='60'
install.timeout='180'
freeze.timeout='1'
global.disable-pip-version-check='1'
"""
    assert install.uv_settings(listed) == {
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_CONSTRAINT": "/etc/constraints.txt",
        "UV_HTTP_TIMEOUT": "180",
    }


def test_pip_installs_where_uv_is_not(run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    command, _ = run("--group", "lint", "--group", "test")
    assert command[2:6] == ["pip", "--disable-pip-version-check", "--python", sys.executable]
    assert command[6:] == ["install", "--no-compile", "--quiet", "--group", "lint", "--group", "test"]


def test_the_script_says_what_failed(tmp_path):
    """And ends with an error."""
    missing = tmp_path / "missing.txt"
    done = subprocess.run(
        [sys.executable, install.__file__, "--requirement", missing], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "missing.txt" in done.stderr
