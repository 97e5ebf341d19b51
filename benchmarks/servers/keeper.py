"""Keeper that ends a server when its owner ends, for any reason.

``python keeper.py SHM_PREFIX FOLDER``, with a pipe from the owner as standard input.

The keeper reads ``watch GROUP`` and ``forget GROUP``. At the end of the pipe it kills the watched process groups with
all processes that they started, waits until these are gone, then removes ``/dev/shm/SHM_PREFIX*`` and the folder.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["family", "kill_family"]

PATIENCE_S = 10.0


def processes() -> dict[int, tuple[int, int]]:
    """Return parent and process group of each process but zombies, which hold nothing and may stay unreaped."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # the command's name, in parentheses, may contain any characters
            state, parent, group = stat.read_text().rpartition(")")[2].split()[:3]
            if state != "Z":
                found[int(stat.parent.name)] = (int(parent), int(group))
    return found


def family(groups: Iterable[int]) -> set[int]:
    """Return the processes of these groups and their descendants, also those in other sessions."""
    wanted, all_of_them = set(groups), processes()
    found: set[int] = set()
    while more := {pid for pid, (parent, group) in all_of_them.items() if group in wanted or parent in found} - found:
        found |= more
    return found


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_family(groups: Iterable[int]) -> set[int]:
    """Stop, then kill all processes of `family`; return them. A stopped process starts no other, so none is missed."""
    stopped: set[int] = set()
    while more := family(groups) - stopped:
        send(more, signal.SIGSTOP)
        stopped |= more
    send(stopped, signal.SIGKILL)
    return stopped


def main() -> None:
    prefix, folder = sys.argv[1:]
    groups: set[int] = set()
    for line in sys.stdin:
        word, group = line.split()
        (groups.add if word == "watch" else groups.discard)(int(group))
    killed = kill_family(groups)
    deadline = time.monotonic() + PATIENCE_S
    while killed & processes().keys() and time.monotonic() < deadline:
        time.sleep(0.005)
    for path in Path("/dev/shm").glob(f"{prefix}*"):  # noqa: S108 shared memory, not a temporary file
        path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
