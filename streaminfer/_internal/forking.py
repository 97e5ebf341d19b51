"""What happens to the state of this process when it forks."""

import os
from collections.abc import Callable

__all__ = ["at_fork"]


def at_fork(**functions: Callable[[], object]) -> None:
    """Register functions, by the keywords of `os.register_at_fork`; nothing on systems that do not fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(**functions)
