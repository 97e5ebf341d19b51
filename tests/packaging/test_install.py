"""Packages are installed by uv, from the indexes of pip, or by pip if uv is missing or fails."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest
from servers import install


@pytest.fixture
def run(monkeypatch):
    """Return a function that runs the script and returns its commands, their variables and the exit status."""
    run_really = subprocess.run

    def made(*arguments, codes):
        ran = []

        def note(command, *, env=None, **options):
            if "config" in command:
                return run_really(command, **options)
            ran.append((command[2:], env))
            return SimpleNamespace(returncode=codes[command[2]])

        monkeypatch.setattr(subprocess, "run", note)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in codes else None)
        monkeypatch.setattr(sys, "argv", ["install.py", *arguments])
        try:
            install.main()
        except SystemExit as ended:
            return ran, ended.code
        return ran, 0

    return made


def test_uv_uses_the_indexes_of_pip(run, monkeypatch):
    """uv uses the indexes of pip, unless a variable of uv names others."""
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.test/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://other.test/simple")
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("UV_INDEX", "https://mine.test/simple")

    [(command, variables)], code = run("--python", "/env/bin/python", "--no-deps", "one==1.0", codes={"uv": 0})

    assert code == 0
    assert command[:5] == ["uv", "pip", "install", "--quiet", "--python"]
    assert command[5:] == ["/env/bin/python", "--no-deps", "one==1.0"]
    assert variables["UV_DEFAULT_INDEX"] == "https://mirror.test/simple"
    assert variables["UV_INDEX"] == "https://mine.test/simple"


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


@pytest.mark.parametrize("codes", [{"pip": 0}, {"uv": 2, "pip": 0}, {"uv": 2, "pip": 1}])
def test_pip_installs_where_uv_does_not(run, capsys, codes):
    """pip installs the packages if uv is missing or fails, such as without a folder for its cache."""
    ran, code = run("--group", "lint", "--group", "test", codes=codes)
    command, _ = ran[-1]
    assert code == codes["pip"]
    assert [command[0] for command, _ in ran] == list(codes)
    assert command[:4] == ["pip", "--disable-pip-version-check", "--python", sys.executable]
    assert command[4:] == ["install", "--quiet", "--no-compile", "--group", "lint", "--group", "test"]
    assert ("pip takes its place" in capsys.readouterr().err) == ("uv" in codes)


def test_script_reports_the_failed_install(tmp_path):
    """The script prints the error of a failed install, and its exit status is not 0."""
    missing = tmp_path / "missing.txt"
    done = subprocess.run(
        [sys.executable, install.__file__, "--requirement", missing], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "missing.txt" in done.stderr
