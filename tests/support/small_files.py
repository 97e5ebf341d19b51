"""A limit on the size of files, which fails as a full disk does: in the middle of a write."""

import contextlib
import resource

__all__ = ["files_limited_to"]


@contextlib.contextmanager
def files_limited_to(size):
    """Limit the files that this process writes to ``size`` bytes; Python ignores the signal and raises ``OSError``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
