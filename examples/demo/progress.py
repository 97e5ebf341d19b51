"""A line that says what goes on: rewritten in place on a terminal, now and then a new one elsewhere."""

import sys
import time
from typing import TextIO

__all__ = ["Progress"]

LONGEST = 110


class Progress:
    """Tells what goes on.

    Args:
        stream: where to; ``None``: stderr.
        interval_s: where lines cannot be rewritten, a new one comes at most so often.
    """

    def __init__(self, stream: TextIO | None = None, *, interval_s: float = 2.0) -> None:
        self._stream = stream or sys.stderr
        self._interval_s = interval_s
        self._began_s = time.monotonic()
        self._next_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began_s

    def say(self, what: str) -> None:
        """What goes on now."""
        line = f"{self.elapsed_s:5.1f} s  {what}"[:LONGEST]
        if self._stream.isatty():
            self._stream.write(f"\r{line:<{LONGEST}}")
            self._stream.flush()
        elif self.elapsed_s >= self._next_s:
            self._next_s = self.elapsed_s + self._interval_s
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def tell(self, what: str) -> None:
        """Write a line that stays."""
        self.done()
        self._stream.write(f"{what}\n")
        self._stream.flush()

    def done(self) -> None:
        """Leaves the line to what comes next."""
        if self._stream.isatty():
            self._stream.write("\r" + " " * LONGEST + "\r")
            self._stream.flush()
