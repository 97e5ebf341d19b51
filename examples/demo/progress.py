"""Progress line: rewritten in place on a terminal, and printed at intervals elsewhere."""

import sys
import time
from typing import TextIO

__all__ = ["Progress"]

LONGEST = 110


class Progress:
    """Prints the progress of the demo.

    Args:
        stream: stream to write to; ``None`` means stderr.
        interval_s: least seconds between two lines if lines cannot be rewritten.
    """

    def __init__(self, stream: TextIO | None = None, *, interval_s: float = 2.0) -> None:
        self._stream = stream or sys.stderr
        self._interval_s = interval_s
        self._began_s = time.monotonic()
        self._next_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began_s

    def say(self, what: str) -> None:
        """Show the current step."""
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
        """Erase the progress line of a terminal."""
        if self._stream.isatty():
            self._stream.write("\r" + " " * LONGEST + "\r")
            self._stream.flush()
