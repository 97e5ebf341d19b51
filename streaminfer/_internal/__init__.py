"""Support code that every part of the package uses."""

import time

__all__ = ["IMPORTED_NS"]

IMPORTED_NS = time.time_ns()
"""When the package was imported, in nanoseconds since 1970: no counter of this process is older."""
