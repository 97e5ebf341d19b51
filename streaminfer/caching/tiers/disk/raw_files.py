"""The bytes of files that SQLite has open.

A process that closes any descriptor of a file loses all its POSIX locks on that file, including SQLite's. A separate
process, which has no locks to lose, therefore reads the files.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["read_raw"]

_RAW_CHUNK = 4 * 2**20
_READER = f"""
import sys
with open(sys.argv[1], "rb") as file:
    while chunk := file.read({_RAW_CHUNK}):
        sys.stdout.buffer.write(chunk)
"""


def read_raw(paths: Sequence[Path], overlap: int) -> Iterator[tuple[Path, bytes]]:
    """Yield the bytes of files, in pieces of 4 MiB.

    Args:
        paths: the files; one that was deleted meanwhile yields nothing.
        overlap: number of bytes of the previous piece with which each piece begins.

    Raises:
        OSError: a file cannot be read.
    """
    for path in paths:
        command = [sys.executable, "-I", "-S", "-c", _READER, str(path)]
        with subprocess.Popen(  # noqa: S603 - the interpreter that runs this
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as reader:
            assert reader.stdout is not None  # noqa: S101 - as asked for
            assert reader.stderr is not None  # noqa: S101 - the same
            before = b""
            while chunk := reader.stdout.read(_RAW_CHUNK):
                yield path, before + chunk
                before = chunk[-overlap:]
            reason = reader.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        if reader.returncode and path.exists():  # SQLite removes its log when it is closed
            raise OSError(f"{path} cannot be read: {reason}")
