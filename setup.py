"""Builds the compiled modules: Cython's and the kernels that Numba compiles ahead of time, all in parallel.

Every ``*_cy.py`` in the package is one source that also runs as plain Python; C types stand in the ``.pxd`` beside it.
The kernels' modules have a table ``EXPORTS``; ``streaminfer/_compiled_kernels/build.py`` compiles them, in a process
for each kind of processor. Modules read each other's C structures, so a build makes all of them or none: where one
cannot be compiled, the build falls back to plain Python, and to kernels that Numba compiles on the user's machine.
``STREAMINFER_REQUIRE_COMPILED=1`` (CI, wheels) makes that an error, ``STREAMINFER_DISABLE_COMPILED=1`` skips it.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from Cython.Build import cythonize
from Cython.Distutils import Extension, build_ext
from setuptools import setup
from setuptools.errors import BaseError, CCompilerError, CompileError
from setuptools.modified import newer_group

ROOT = Path(__file__).parent
REQUIRED = os.environ.get("STREAMINFER_REQUIRE_COMPILED", "") == "1"
DISABLED = os.environ.get("STREAMINFER_DISABLE_COMPILED", "") == "1"
KERNELS = "streaminfer._compiled_kernels"

SHARED = "streaminfer._internal._cython_shared"
"""The module with Cython's code for memoryviews; without it, that is most of each module that has one."""

VECTORIZED = {"_rows_cy"}
"""Modules whose loops are worth ``-O3``; for the others it makes larger code and no faster one."""

DIRECTIVES = {
    "language_level": "3",
    # types come from the .pxd alone: a Python annotation `int` must not truncate a float silently
    "annotation_typing": False,
    "embedsignature": True,
}


class KernelVariant(Extension):
    """An extension module that Numba compiles, not Cython and a C compiler."""


class BuildModules(build_ext):
    """Build in as many threads as there are processors, and the kernels beside them."""

    _cython = threading.Lock()  # Cython has global state; the C compiler, a process, takes three quarters of the time

    def finalize_options(self) -> None:
        super().finalize_options()
        self._failed = threading.Event()
        if self.parallel is None:
            # the threads of the kernels only wait; C modules begin at once, so that one that fails shows early
            self.parallel = (os.cpu_count() or 1) + sum(isinstance(ext, KernelVariant) for ext in self.extensions)

    def build_extensions(self) -> None:
        try:
            self._check_compiler()
            super().build_extensions()
        except (CCompilerError, BaseError) as error:
            if REQUIRED:
                raise
            self.warn(f"building plain Python, since a module could not be compiled: {error}")
            for ext in self.extensions:  # also what earlier builds left, here and beside the sources
                for inplace in (False, True):
                    self.inplace = inplace
                    Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            self.inplace = False  # as setuptools has it while it builds
            self.extensions = []

    def _check_compiler(self) -> None:
        command = getattr(self.compiler, "compiler_so", None)  # on Unix; others find theirs when they compile
        if command and shutil.which(command[0]) is None:
            raise CompileError(f"the C compiler {command[0]!r} was not found")

    def build_extension(self, ext: Extension) -> None:
        try:
            if isinstance(ext, KernelVariant):
                self._compile_kernels(ext)
            else:
                self._compile_module(ext)
        except BaseException:
            self._failed.set()
            raise

    def _compile_module(self, ext: Extension) -> None:
        with self._cython:
            if self._failed.is_set():  # all or none: what has not begun need not
                return
            translated = cythonize(
                ext,
                force=self.force,
                quiet=True,
                compiler_directives=DIRECTIVES,
                shared_utility_qualified_name=SHARED,
            )
            ext.sources = translated[0].sources
        super().build_extension(ext)

    def _compile_kernels(self, ext: KernelVariant) -> None:
        target = self.get_ext_fullpath(ext.name)
        if not (self.force or newer_group(ext.sources, target, "newer")):
            return
        environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # the package's C modules are being built, and the kernels need none of them
        environment["STREAMINFER_DISABLE_COMPILED"] = "1"
        # Numba's own C sources, which Python's own flags would compile for a debugger
        environment.setdefault("CFLAGS", "" if os.name == "nt" else "-O2 -g0")
        command = [sys.executable, "-m", f"{KERNELS}.build", ext.name.rpartition(".")[2], str(Path(target).absolute())]
        # removed here, since a process that is killed removes nothing
        with tempfile.TemporaryDirectory(prefix="streaminfer-kernels-", ignore_cleanup_errors=True) as folder:
            process = subprocess.Popen(  # noqa: S603 - this interpreter and names of ours
                command,
                env=environment | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="locale",
                errors="replace",  # bytes of a path
            )
            while True:
                try:
                    printed, _ = process.communicate(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    if self._failed.is_set():  # all or none
                        process.kill()
        if process.returncode and not self._failed.is_set():
            raise CompileError(f"the kernels: {printed}")


def extensions() -> list[Extension]:
    if DISABLED and REQUIRED:
        raise SystemExit("STREAMINFER_REQUIRE_COMPILED=1 and STREAMINFER_DISABLE_COMPILED=1 contradict each other")
    if DISABLED:
        return []
    # the largest first: no processor waits at the end for a large one
    found = sorted((ROOT / "streaminfer").rglob("*_cy.py"), key=lambda path: (-path.stat().st_size, path))
    sources = [path.relative_to(ROOT) for path in found]
    # who sets CFLAGS decides how much is optimized
    optimized = [] if os.name == "nt" or "CFLAGS" in os.environ else ["-O2", "-g0"]
    modules = [
        Extension(
            ".".join(source.with_suffix("").parts),
            [str(source)],
            extra_compile_args=[*optimized, "-O3"] if optimized and source.stem in VECTORIZED else optimized,
        )
        for source in sources
    ]
    # the kernels first: each takes longer than any other module
    return [*kernel_variants(), Extension(SHARED, [], extra_compile_args=optimized), *modules]


def kernel_variants() -> list[KernelVariant]:
    """One module for each kind of processor, as the package's own loader names them."""
    package = ROOT.joinpath(*KERNELS.split("."))
    spec = importlib.util.spec_from_file_location(KERNELS, package / "__init__.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    sources = [str(loader.source_of(module).relative_to(ROOT)) for module in loader.MODULES]
    sources += [f"{package.relative_to(ROOT)}/{name}.py" for name in ("__init__", "build")]
    sources.append("streaminfer/_internal/loading/numba_jit.py")
    return [KernelVariant(f"{KERNELS}.{variant}", sources) for variant in loader.VARIANTS]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildModules})
