"""Raw bytes of files that SQLite has open.

A process that closes any descriptor of a file loses all POSIX locks that it has on it, those of SQLite included. So the
files are read by a process of their own, which has no locks to lose.
"""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["read_raw"]

_SIZE = struct.Struct("<I")
_CHUNK = 4 * 2**20
_READER = f"""
import sys, struct
out = sys.stdout.buffer
for path in sys.argv[1:]:
    try:
        with open(path, "rb") as file:
            while chunk := file.read({_CHUNK}):
                out.write(struct.pack("<I", len(chunk)) + chunk)
    except FileNotFoundError:
        pass  # SQLite has removed its log since
    out.write(struct.pack("<I", 0))
"""


def read_raw(paths: Sequence[Path], overlap: int) -> Iterator[tuple[Path, bytes]]:
    """Yield the bytes of files, in pieces of 4 MiB.

    Args:
        paths: the files; one that is gone meanwhile has no bytes.
        overlap: how many bytes of the piece before each piece begins with.

    Raises:
        OSError: a file cannot be read.
    """
    if not paths:
        return
    command = [sys.executable, "-I", "-S", "-c", _READER, *map(str, paths)]
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as reader:  # noqa: S603 - the interpreter that runs this
        assert reader.stdout is not None  # noqa: S101 - as asked for
        assert reader.stderr is not None  # noqa: S101 - the same
        for path in paths:
            before = b""
            while True:
                head = reader.stdout.read(_SIZE.size)
                size = _SIZE.unpack(head)[0] if len(head) == _SIZE.size else -1
                chunk = reader.stdout.read(max(size, 0))
                if size < 0 or len(chunk) < size:
                    reason = reader.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
                    raise OSError(f"{path} cannot be read: {reason}")
                if size == 0:
                    break
                yield path, before + chunk
                before = chunk[-overlap:]
