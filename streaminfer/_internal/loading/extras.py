"""Optional dependencies, imported at first use."""

import importlib
from types import ModuleType

from streaminfer.errors import BackendError, MissingExtra

__all__ = ["require"]


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency.

    Args:
        module: dotted name of the module.
        extra: the extra of streaminfer that installs it.
        purpose: the feature that needs it, for the message.

    Raises:
        MissingExtra: it is not installed.
        BackendError: its files cannot be read, for example because the process has too many files open; a later
            call tries again.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not (module + ".").startswith(error.name + "."):
            raise  # the module exists but lacks a dependency of its own, which the message names
        raise MissingExtra(
            f"{purpose} needs {module}, which is not installed: pip install 'streaminfer[{extra}]'",
            name=module,
        ) from error
    except OSError as error:
        raise BackendError(f"{purpose} needs {module}, which could not be loaded: {error}") from error
