"""Runs the compiled modules' plain Python sources instead, where ``STREAMINFER_DISABLE_COMPILED=1`` asks for it.

The same tests then hold both; a debugger can step through.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

__all__ = ["install"]


class _PlainSources(importlib.abc.MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,  # noqa: ARG002 - the protocol
    ) -> importlib.machinery.ModuleSpec | None:
        if not (fullname.startswith("streaminfer.") and fullname.endswith("_cy")) or path is None:
            return None
        for folder in path:
            source = Path(folder, fullname.rpartition(".")[2] + ".py")
            if source.exists():
                return importlib.util.spec_from_file_location(fullname, source)
        return None


def install() -> None:
    """Puts the plain sources before the compiled modules, for imports from now on."""
    if not any(isinstance(finder, _PlainSources) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PlainSources())
