"""Builds the compiled modules: every ``*_cy.py`` in the package, one source that also runs as plain Python.

C types stand in the ``.pxd`` beside each module. Without a C compiler the build falls back to plain Python;
``STREAMINFER_REQUIRE_COMPILED=1`` (CI, wheels) makes that an error, ``STREAMINFER_DISABLE_COMPILED=1`` skips it.
"""

import os
from pathlib import Path

from Cython.Distutils import Extension, build_ext
from setuptools import setup

ROOT = Path(__file__).parent
REQUIRED = os.environ.get("STREAMINFER_REQUIRE_COMPILED", "") == "1"
DISABLED = os.environ.get("STREAMINFER_DISABLE_COMPILED", "") == "1"

DIRECTIVES = {
    "language_level": "3",
    # types come from the .pxd alone: a Python annotation `int` must not truncate a float silently
    "annotation_typing": False,
    "embedsignature": True,
}


def extensions() -> list[Extension]:
    if DISABLED and REQUIRED:
        raise SystemExit("STREAMINFER_REQUIRE_COMPILED=1 and STREAMINFER_DISABLE_COMPILED=1 contradict each other")
    if DISABLED:
        return []
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / "streaminfer").rglob("*_cy.py"))
    return [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            optional=not REQUIRED,
            cython_directives=DIRECTIVES,
            extra_compile_args=[] if os.name == "nt" else ["-O3", "-g0"],
        )
        for source in sources
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": build_ext})
