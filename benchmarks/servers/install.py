"""Installs packages like `pip install`: with uv, which takes a tenth of the CPU time, or with pip if uv cannot.

python benchmarks/servers/install.py [--python PYTHON] ARGUMENT ...     arguments of `pip install`

uv does not read pip's configuration, so its indexes, constraints and certificates are passed on to uv. Modules are
compiled to byte code at import, because only a small part of the installed modules is ever imported.
"""

import argparse
import ast
import importlib.util
import os
import subprocess
import sys

__all__ = ["uv_settings"]

OPTIONS = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "proxy": ("ALL_PROXY", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
}
"""By option of pip: the variable of uv, and the separator of its values."""

SECTIONS = ("global", "install", ":env:")
"""Sections of pip's configuration; later ones take precedence."""


def uv_settings(listed: str) -> dict[str, str]:
    """Return the variables of uv for the settings that `pip config list` printed."""
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # like pip: the best version of all indexes
    lines = [line.partition("=") for line in listed.splitlines()]
    for wanted in SECTIONS:
        for key, _, value in lines:
            section, _, option = key.rpartition(".")
            if section == wanted and option in OPTIONS:
                name, separator = OPTIONS[option]
                settings[name] = separator.join(ast.literal_eval(value).split())
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0], allow_abbrev=False)
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the environment; this one if none")
    options, arguments = parser.parse_known_args()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if importlib.util.find_spec("uv") is not None:
        listed = subprocess.run([*pip, "config", "list"], capture_output=True, text=True, check=True).stdout
        uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", options.python]
        done = subprocess.run([*uv, *arguments], env=uv_settings(listed) | os.environ, check=False)
        if not done.returncode:
            return
        print("uv cannot install this here: pip takes its place", file=sys.stderr, flush=True)
    command = [*pip, "--python", options.python, "install", "--quiet", "--no-compile", *arguments]
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
