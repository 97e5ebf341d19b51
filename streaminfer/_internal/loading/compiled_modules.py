"""Check whether the package runs compiled: all of its ``*_cy`` modules or none, decided at its first import.

Compiled modules read each other's C structures. A compiled module that is mixed with the uncompiled source of another,
or with one from an earlier build, fails at a later import or corrupts memory. A build makes all of them or none; this
module checks what a checkout contains.
"""

import functools
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

__all__ = ["are_used", "warn_if_unused"]

_PACKAGE = Path(__file__).parents[2]
_SUFFIX = "_cy"


class _PlainSources:
    """Import finder that returns the sources of the compiled modules instead of the compiled files."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol
    ) -> importlib.machinery.ModuleSpec | None:
        if not (fullname.startswith("streaminfer.") and fullname.endswith(_SUFFIX)) or path is None:
            return None
        for folder in path:
            source = Path(folder, fullname.rpartition(".")[2] + ".py")
            if source.exists():
                return importlib.util.spec_from_file_location(fullname, source)
        return None


@functools.cache
def are_used() -> bool:
    """Return whether this process uses the compiled modules; the first import of the package decides it.

    With ``STREAMINFER_DISABLE_COMPILED=1``, the uncompiled sources take precedence from now on, so the same tests can
    check both builds and a debugger can step through.

    Raises:
        ImportError: some modules are compiled for this Python and some are not.
    """
    if _are_disabled():
        sys.meta_path.insert(0, _PlainSources())
        return False
    compiled, missing = look(_PACKAGE)
    if compiled and missing:
        raise ImportError(
            f"streaminfer in {_PACKAGE} is compiled in part: {missing[0]} and {len(missing) - 1} other module(s) of "
            f"{len(compiled) + len(missing)} are not. Build it again (`make test`, or pip install), or set "
            "STREAMINFER_DISABLE_COMPILED=1 to run the plain sources"
        )
    return bool(compiled)


def look(package: Path) -> tuple[list[str], list[str]]:
    """Return the paths, without a suffix, of the modules that are compiled for this Python, and of all others.

    Args:
        package: the package's folder.
    """
    sources, compiled = set(), set()
    for folder, folders, names in os.walk(package):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in names:
            stem, dot, suffix = name.partition(".")
            if stem.endswith(_SUFFIX):
                if suffix == "py":
                    sources.add(f"{folder}/{stem}")
                elif dot + suffix in importlib.machinery.EXTENSION_SUFFIXES:
                    compiled.add(f"{folder}/{stem}")
    return sorted(compiled), sorted(sources - compiled)


@functools.cache
def warn_if_unused() -> None:
    """Log once per process that the package runs uncompiled."""
    if are_used():
        return
    if _are_disabled():
        reason = "STREAMINFER_DISABLE_COMPILED=1 is set"
    else:
        reason = (
            f"{_PACKAGE} holds no modules compiled for this Python; where a compiled streaminfer is installed, start "
            "from another folder than the checkout's"
        )
    from streaminfer._internal.error_log import Log  # noqa: PLC0415 - a compiled package does without

    Log("streaminfer").warning("streaminfer serves uncompiled, which costs more CPU per request: %s", reason)


def _are_disabled() -> bool:
    return os.environ.get("STREAMINFER_DISABLE_COMPILED") == "1"
