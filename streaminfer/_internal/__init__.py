"""Support code that every part of the package uses."""

import time

__all__ = ["IMPORTED_NS"]

IMPORTED_NS = time.time_ns()
"""Instant of the package's import, nanoseconds since 1970; no counter of this process is older."""
