"""Builds the compiled modules: every ``*_cy.py`` in the package, one source that also runs as plain Python.

C types stand in the ``.pxd`` beside each module. Without a C compiler the build falls back to plain Python;
``STREAMINFER_REQUIRE_COMPILED=1`` (CI, wheels) makes that an error, ``STREAMINFER_DISABLE_COMPILED=1`` skips it.
Modules are translated and compiled side by side, on all cores.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
REQUIRED = os.environ.get("STREAMINFER_REQUIRE_COMPILED", "") == "1"
DISABLED = os.environ.get("STREAMINFER_DISABLE_COMPILED", "") == "1"
CORES = os.cpu_count() or 1

DIRECTIVES = {
    "language_level": "3",
    # types come from the .pxd alone: a Python annotation `int` must not truncate a float silently
    "annotation_typing": False,
    "embedsignature": True,
}


class BuildInParallel(build_ext):
    """Translates all modules to C, then compiles them, as many at a time as there are cores."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.parallel = CORES

    def build_extensions(self) -> None:
        translated = cythonize(
            [Extension(extension.name, list(extension.sources)) for extension in self.extensions],
            nthreads=CORES if CORES > 1 else 0,
            compiler_directives=DIRECTIVES,
            force=bool(self.force),
            cache="CYTHON_CACHE_DIR" in os.environ,  # where several builds share what Cython translated
            quiet=True,
        )
        sources = {extension.name: extension.sources for extension in translated}
        for extension in self.extensions:
            extension.sources = sources[extension.name]
        super().build_extensions()


def extensions() -> list[Extension]:
    if DISABLED and REQUIRED:
        raise SystemExit("STREAMINFER_REQUIRE_COMPILED=1 and STREAMINFER_DISABLE_COMPILED=1 contradict each other")
    if DISABLED:
        return []
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / "streaminfer").rglob("*_cy.py"))
    # who sets CFLAGS decides how much is optimized
    optimized = [] if os.name == "nt" or "CFLAGS" in os.environ else ["-O3", "-g0"]
    return [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            optional=not REQUIRED,
            extra_compile_args=optimized,
        )
        for source in sources
    ]


if __name__ == "__main__":  # processes that translate may import this file
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildInParallel})
