"""Compile the kernels ahead of time into one extension module; used by the package's build only.

::

    python -m streaminfer._compiled_kernels.build VARIANT FILE

Only :func:`compile_variant` uses ``numba.pycc``, which is marked for deprecation. A replacement must turn the same
pairs of function and signature into an extension module: ``numba.core.compiler.compile_extra`` returns the LLVM module
of each, and ``llvmlite.binding.TargetMachine.emit_object`` the object file of all.

A process can compile for one variant only. Numba's JIT compiles the kernels that an exported one calls, and environment
variables set the JIT's processor when Numba is imported.
"""

import importlib
import importlib.util
import json
import os
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streaminfer._compiled_kernels import MODULES, VARIANTS, source_digest, source_of

__all__ = ["compile_variant", "main"]


def main(arguments: list[str]) -> None:
    """Compile a variant into a file, which is replaced only when the new one is complete."""
    variant, file = arguments
    target = Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder  # a temporary cache, because the JIT may compile for another processor
        os.environ["NUMBA_CPU_NAME"] = VARIANTS[variant] or "generic"
        os.environ["NUMBA_CPU_FEATURES"] = ""
        if variant == "baseline" and "x86_64_v3" in VARIANTS:
            # without SSE 4.2 no vector compares 64-bit integers: scalar code takes a third of the time
            os.environ["NUMBA_LOOP_VECTORIZE"] = os.environ["NUMBA_SLP_VECTORIZE"] = "0"
        built = compile_variant(variant, Path(folder))
        complete_file = target.with_name(f".{target.name}.{os.getpid()}")
        complete_file.write_bytes(built.read_bytes())
        complete_file.chmod(0o755)
        complete_file.replace(target)


def compile_variant(variant: str, folder: Path) -> Path:
    """Compile all exports of the kernels' modules for one processor.

    Args:
        variant: a key of ``VARIANTS``; also the name of the extension module.
        folder: folder for the module.

    Returns:
        The path of the extension module.
    """
    exports = list(_exports())
    description = json.dumps(
        {"digest": source_digest(), "arrays": {name: _arrays(signature) for name, _, signature in exports}}
    )

    built: Path = folder / (variant + sysconfig.get_config_var("EXT_SUFFIX"))

    def describe() -> str:
        return description

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the deprecation of pycc, and of distutils
        pycc: Any = importlib.import_module("numba.pycc")
        compiler: Any = importlib.import_module("numba.pycc.compiler")
        jit: Any = importlib.import_module("numba.core.compiler")
        new_flags = jit.Flags

        def nogil_flags() -> Any:
            """Return flags for functions that release the interpreter lock; pycc has no option for them."""
            flags = new_flags()
            flags.release_gil = True
            return flags

        def callee_flags() -> Any:
            """Return flags without wrappers for Python and C, which took a third of the time, for inner functions."""
            flags = new_flags()
            flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
            return flags

        compiler.Flags, jit.Flags = nogil_flags, callee_flags
        module = pycc.CC(variant, source_module=sys.modules[__name__])
        module.output_dir = str(folder)
        module.output_file = built.name
        module.target_cpu = VARIANTS[variant]
        for name, function, signature in exports:
            module.export(name, signature)(function)
        module.export("describe", "unicode_type()")(describe)
        module.compile()
    return built


def _exports() -> Iterator[tuple[str, Any, str]]:
    """Yield the name, plain function and signature of each export in the ``EXPORTS`` tables of the modules."""
    for name in MODULES:
        # loaded by file, so that the packages around it and their imports are not needed
        spec = importlib.util.spec_from_file_location(name, source_of(name))
        if spec is None or spec.loader is None:
            raise FileNotFoundError(source_of(name))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        for export, (function, signature) in module.EXPORTS.items():
            yield export, getattr(function, "py_func", function), signature


def _arrays(signature: str) -> list[tuple[int, str, int, bool]]:
    """Return position, dtype, number of dimensions and writability of each array argument."""
    core: Any = importlib.import_module("numba.core")
    as_dtype = importlib.import_module("numba.np.numpy_support").as_dtype
    arguments, _ = core.sigutils.normalize_signature(signature)
    arrays = []
    for position, kind in enumerate(arguments):
        if isinstance(kind, core.types.Array):
            if kind.layout != "C":
                raise ValueError(f"{signature}: expected C-contiguous arrays, got {kind}")
            arrays.append((position, as_dtype(kind.dtype).str, kind.ndim, kind.mutable))
    return arrays


if __name__ == "__main__":
    main(sys.argv[1:])
