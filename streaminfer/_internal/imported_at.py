"""The instant at which the package was imported: no counter of this process is older."""

import time

__all__ = ["IMPORTED_NS"]

IMPORTED_NS = time.time_ns()
"""Nanoseconds of the wall clock since 1970."""
