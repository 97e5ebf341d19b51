"""Ends a server when its owner ends, however that happens: python keeper.py SHM_PREFIX FOLDER <pipe from the owner.

Reads ``watch GROUP`` and ``forget GROUP``. At the end of the pipe: kills the watched process groups, waits until their
processes are gone, then removes ``/dev/shm/SHM_PREFIX*`` and the folder.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

PATIENCE_S = 10.0


def alive(group: int) -> bool:
    """Whether the group has a process that is not a zombie: those hold nothing and may stay unreaped."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


def main() -> None:
    prefix, folder = sys.argv[1:]
    groups: set[int] = set()
    for line in sys.stdin:
        word, group = line.split()
        (groups.add if word == "watch" else groups.discard)(int(group))
    for one in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while any(map(alive, groups)) and time.monotonic() < deadline:
        time.sleep(0.005)
    for path in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108 it is that folder
        path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
