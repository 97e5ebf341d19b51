"""What happens to the state of this process when it forks."""

import os
from collections.abc import Callable

__all__ = ["at_fork"]


def at_fork(
    *,
    before: Callable[[], object] | None = None,
    in_parent: Callable[[], object] | None = None,
    in_child: Callable[[], object],
) -> None:
    """Register functions that run when the process forks; nothing on systems that do not fork."""
    if hasattr(os, "register_at_fork"):
        if before is not None and in_parent is not None:
            os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
        else:
            os.register_at_fork(after_in_child=in_child)
